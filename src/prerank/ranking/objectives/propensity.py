"""How likely a recalled pair is to be exposed: logged where known, else fitted.

Fitted (C): logistic regression of exposed against unexposed recalled pairs on the logarithms of
the item's exposures and interactions in training with other users. What the pair's own user met is
not counted, and nothing is said of how much that was: a row's own exposure among its features
would tell the classes apart. Never below a stated floor, so that no row counts more than 1 / floor.

Logged propensities are those of the logging policy; where only its last stage explores (as in the
simulated world) they say nothing of what earlier stages left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import TRAIN, Dataset, FloatArray, IntArray, PseudoLabels, TimeArray
from prerank.data.unexposed import (
    exposure_counts,
    in_training,
    interaction_counts,
    pair_keys,
    pairs_of,
    recalled_exposures,
    sorted_unique,
)
from prerank.seeds import rng

Pairs = tuple[IntArray, IntArray]
"""(N,) users and (N,) items."""

MAX_ROWS = 400_000
"""Rows that the regression is fitted on, exposed and unexposed in their true proportion."""


@dataclass(frozen=True, eq=False)
class Recalled:
    """The recalled pairs D, each once.

    Attributes:
        exposed: D_e.
        unexposed: D_u, or a sample of it.
        n_unexposed: number of pairs in all of D_u.
    """

    exposed: Pairs
    unexposed: Pairs
    n_unexposed: int

    @classmethod
    def of(cls, dataset: Dataset, labels: PseudoLabels) -> Recalled:
        """Return what the pairs of ``labels`` stand for, as the label stage found it."""
        beside = labels.fit.get("beside", "training")
        rows = dataset.exposures
        shown = np.flatnonzero(recalled_exposures(dataset, beside))
        key = sorted_unique(pair_keys(rows.user[shown], rows.item[shown]))
        n_unexposed = int(labels.fit.get("n_unexposed", len(labels)))
        return cls(pairs_of(key), (labels.user, labels.item), n_unexposed)

    @property
    def exposed_share(self) -> float:
        """|D_e| / |D|."""
        n_exposed = len(self.exposed[0])
        return n_exposed / (n_exposed + self.n_unexposed)


def exposure_propensity(
    dataset: Dataset,
    exposure_row: TimeArray,
    recalled: Recalled,
    floor: float,
    seed: int,
) -> FloatArray:
    """Return the propensity of exposed rows, (N,) float32 in [floor, 1].

    Args:
        dataset: the logs.
        exposure_row: (N,) int64 rows of the exposures.
        recalled: the recalled pairs to fit on.
        floor: least value, in (0, 1].
        seed: of the sample that is fitted on.
    """
    table = dataset.exposures
    logged = table.propensity[exposure_row].astype(np.float64)
    unknown = np.isnan(logged)
    if unknown.any():
        shown = (table.user[exposure_row][unknown], table.item[exposure_row][unknown])
        logged[unknown] = _fitted(dataset, shown, recalled, seed)
    return np.clip(logged, floor, 1).astype(np.float32)


def _fitted(dataset: Dataset, wanted: Pairs, recalled: Recalled, seed: int) -> NDArray[np.float64]:
    """Return the propensity of the pairs ``wanted``."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    n_exposed, n_kept = len(recalled.exposed[0]), len(recalled.unexposed[0])
    if not n_exposed or not n_kept:
        return np.ones(len(wanted[0]))
    # Both sides are sampled at one rate, though one may be a sample already.
    whole = n_exposed + recalled.n_unexposed
    rate = min(1.0, MAX_ROWS / whole, n_kept / recalled.n_unexposed)
    stream, met = rng(seed, "train", "propensity"), _Met.of(dataset)
    features = [
        met.features(_sample(pairs, rate * n, stream))
        for pairs, n in ((recalled.exposed, n_exposed), (recalled.unexposed, recalled.n_unexposed))
    ]
    target = np.repeat([1, 0], [len(part) for part in features])
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(np.concatenate(features), target)
    found: NDArray[np.float64] = model.predict_proba(met.features(wanted))[:, 1]
    return found


def _sample(pairs: Pairs, size: float, stream: np.random.Generator) -> Pairs:
    user, item = pairs
    few = min(max(1, round(size)), len(user))
    keep = np.sort(stream.choice(len(user), size=few, replace=False))
    return user[keep], item[keep]


@dataclass(frozen=True, eq=False)
class _Met:
    """Who met what in training.

    Attributes:
        keys: sorted `pair_keys` of the exposures and of the interactions, one for each row.
        counts: (I,) rows of each item, of the same two.
    """

    keys: tuple[TimeArray, TimeArray]
    counts: tuple[TimeArray, TimeArray]

    @classmethod
    def of(cls, dataset: Dataset) -> _Met:
        """Count a dataset's training."""
        shown, liked = dataset.exposures, dataset.interactions
        rows = np.flatnonzero(shown.split == TRAIN)
        exposed = np.sort(pair_keys(shown.user[rows], shown.item[rows]))
        rows = np.flatnonzero(in_training(dataset))
        interacted = np.sort(pair_keys(liked.user[rows], liked.item[rows]))
        return cls((exposed, interacted), (exposure_counts(dataset), interaction_counts(dataset)))

    def features(self, pairs: Pairs) -> NDArray[np.float64]:
        """Return (N, 2): log counts of the item's exposures and interactions with other users."""
        user, item = pairs
        key = pair_keys(user, item)
        columns = []
        for keys, counts in zip(self.keys, self.counts, strict=True):
            own = np.searchsorted(keys, key, side="right") - np.searchsorted(keys, key)
            columns.append(np.log1p((counts[item] - own).astype(np.float64)))
        return np.column_stack(columns)
