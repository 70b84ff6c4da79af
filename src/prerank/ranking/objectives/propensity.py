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

from prerank.artifacts import TRAIN, Dataset, FloatArray, IntArray, TimeArray
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


def exposure_propensity(
    dataset: Dataset,
    exposure_row: TimeArray,
    user: IntArray,
    item: IntArray,
    floor: float,
    seed: int,
) -> FloatArray:
    """Return the propensity of exposed rows, (N,) float32 in [floor, 1].

    Args:
        dataset: the logs.
        exposure_row: (N,) int64 rows of the exposures.
        user, item: (M,) int32, the unexposed recalled pairs to fit against.
        floor: least value, in (0, 1].
        seed: of the sample that is fitted on.
    """
    table = dataset.exposures
    logged = table.propensity[exposure_row].astype(np.float64)
    unknown = np.isnan(logged)
    if unknown.any():
        shown = (table.user[exposure_row][unknown], table.item[exposure_row][unknown])
        logged[unknown] = _fitted(dataset, shown, (user, item), seed)
    return np.clip(logged, floor, 1).astype(np.float32)


def recalled_share(dataset: Dataset, n_unexposed: int) -> float:
    """Return |D_e| / |D| of pairs, each counted once; D_u holds ``n_unexposed``, at least one."""
    n_exposed = len(_exposed_pairs(dataset)[0])
    return n_exposed / (n_exposed + n_unexposed)


def _exposed_pairs(dataset: Dataset) -> Pairs:
    """Return the pairs of D_e, each once."""
    rows, shown = dataset.exposures, recalled_exposures(dataset)
    key = sorted_unique(pair_keys(rows.user[shown], rows.item[shown]))
    return pairs_of(key)


def _fitted(dataset: Dataset, wanted: Pairs, unexposed: Pairs, seed: int) -> NDArray[np.float64]:
    """Return the propensity of the pairs ``wanted``."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    exposed = _exposed_pairs(dataset)
    n_exposed, n_unexposed = len(exposed[0]), len(unexposed[0])
    if not n_exposed or not n_unexposed:
        return np.ones(len(wanted[0]))
    rate = min(1.0, MAX_ROWS / (n_exposed + n_unexposed))
    stream = rng(seed, "train", "propensity")
    met = _Met.of(dataset)
    features = [met.features(_sample(pairs, rate, stream)) for pairs in (exposed, unexposed)]
    target = np.repeat([1, 0], [len(part) for part in features])
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(np.concatenate(features), target)
    found: NDArray[np.float64] = model.predict_proba(met.features(wanted))[:, 1]
    return found


def _sample(pairs: Pairs, rate: float, stream: np.random.Generator) -> Pairs:
    user, item = pairs
    size = max(1, round(rate * len(user)))
    keep = np.sort(stream.choice(len(user), size=size, replace=False))
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
        shown = dataset.exposures.take(dataset.exposures.split == TRAIN)
        liked = dataset.interactions.take(in_training(dataset))
        exposed = np.sort(pair_keys(shown.user, shown.item))
        interacted = np.sort(pair_keys(liked.user, liked.item))
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
