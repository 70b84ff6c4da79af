"""How likely a recalled pair is to be exposed: logged where known, else fitted.

Fitted (C): logistic regression of exposed against unexposed recalled pairs on the logarithms of
the item's and the user's exposures and interactions in training. Never below a stated floor, so
that no row counts more than 1 / floor.

Logged propensities are those of the logging policy; where only its last stage explores (as in the
simulated world) they say nothing of what earlier stages left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import TRAIN, Dataset, FloatArray, IntArray, TimeArray
from prerank.data.unexposed import exposure_counts, in_training, interaction_counts
from prerank.seeds import rng

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
        shown = (table.user[exposure_row], table.item[exposure_row])
        logged[unknown] = _fitted(dataset, shown, (user, item), seed)[unknown]
    return np.clip(logged, floor, 1).astype(np.float32)


def _fitted(
    dataset: Dataset,
    exposed: tuple[IntArray, IntArray],
    unexposed: tuple[IntArray, IntArray],
    seed: int,
) -> NDArray[np.float64]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    n_exposed, n_unexposed = len(exposed[0]), len(unexposed[0])
    if not n_unexposed:
        return np.ones(n_exposed)
    rate = min(1.0, MAX_ROWS / (n_exposed + n_unexposed))
    stream = rng(seed, "train", "propensity")
    features = [_features(dataset, *_sample(pairs, rate, stream)) for pairs in (exposed, unexposed)]
    target = np.repeat([1, 0], [len(part) for part in features])
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(np.concatenate(features), target)
    found: NDArray[np.float64] = model.predict_proba(_features(dataset, *exposed))[:, 1]
    return found


def _sample(
    pairs: tuple[IntArray, IntArray], rate: float, stream: np.random.Generator
) -> tuple[IntArray, IntArray]:
    user, item = pairs
    size = max(1, round(rate * len(user)))
    keep = np.sort(stream.choice(len(user), size=size, replace=False))
    return user[keep], item[keep]


def _features(dataset: Dataset, user: IntArray, item: IntArray) -> NDArray[np.float64]:
    """Return (N, 4): log counts of the item and of the user, exposures and interactions.

    A row's own exposure is counted too. To leave it out would tell the classes apart: where every
    user was shown equally many items, exposed rows alone would have one less.
    """
    n_users = len(dataset.users)
    shown = dataset.exposures.user[dataset.exposures.split == TRAIN]
    by_item = (exposure_counts(dataset), interaction_counts(dataset))
    by_user = (
        np.bincount(shown, minlength=n_users),
        np.bincount(dataset.interactions.user[in_training(dataset)], minlength=n_users),
    )
    columns = [*(counts[item] for counts in by_item), *(counts[user] for counts in by_user)]
    return np.log1p(np.column_stack(columns).astype(np.float64))
