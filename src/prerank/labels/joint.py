"""The joint map (extension, ours): click fitted on similarity and exposure popularity together.

Source: method.md stage 5, ``joint``; nothing of it is from the paper. Two boosted models are
fitted over the entire recalled space on x = (similarities, log exposures), or, with
``joint_teacher``, on x = (similarities, a ranker's logit, log exposures):
g(x) = P(exposed and clicked), every unexposed pair counted as not clicked, and e(x) = P(exposed).
The score is the logit of g / e^c. With c = 0 popularity speaks fully; with c = 1 it is
P(click | exposed, x), fully corrected for propensity; c = 1/2 stands between.

Cross-fitted by user: no row of a user trains the models that predict that user's pairs, and an
item's exposures are counted among users of the other folds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from prerank.artifacts import (
    TRAIN,
    Dataset,
    IntArray,
    InterestAnchors,
    ItemEmbeddings,
    TimeArray,
)
from prerank.errors import DataError
from prerank.labels.calibration import LEAST_PROPENSITY, DoubleArray, counts_by_fold
from prerank.labels.matching import Pooling, match_pairs
from prerank.progress import track

MAX_ROWS = 400_000
"""Rows that the two models are fitted on, exposed and unexposed together."""
LEAST_RATE = 1e-4


@dataclass(frozen=True, eq=False)
class Space:
    """Rows of the recalled space as the joint map sees them.

    Attributes:
        features: (N, F) float32, NaN where missing; the first ``n_rising`` columns can only raise
            the click probability.
        user: (N,) int32.
        n_rising: number of similarity columns, and the ranker's.
    """

    features: NDArray[np.float32]
    user: IntArray
    n_rising: int


def similarities(
    user: IntArray,
    item: IntArray,
    embeddings: ItemEmbeddings,
    anchors: InterestAnchors,
    pooling: Pooling,
) -> NDArray[np.float32]:
    """Return (N, S) relevances: one column, or two (LLM, other) where anchors are joined.

    Anchors that no language model made have logprob 0.
    """
    spoken = anchors.logprob < 0
    kinds = [spoken, ~spoken] if spoken.any() and not spoken.all() else [np.ones_like(spoken)]
    parts = [anchors.only(kind) for kind in kinds]
    found = [match_pairs(user, item, embeddings, part, pooling).relevance for part in parts]
    return np.column_stack(found)


def exposures_elsewhere(dataset: Dataset, fold: IntArray, n_folds: int) -> DoubleArray:
    """Return (n_folds, I): training exposures of each item to users of all folds but this one.

    What a row sees of its item: with those of the same user among them, of exposed rows alone,
    trees would tell exposed from unexposed by one more or less.
    """
    train = np.flatnonzero(dataset.exposures.split == TRAIN)
    shown_FI = counts_by_fold(dataset, train, fold, n_folds)
    return np.asarray(shown_FI.sum(axis=0) - shown_FI)


def joint_scores(
    held: Space,
    click: NDArray[np.int8],
    unexposed: Space,
    fold: IntArray,
    correction: float,
    n_exposed: int,
    n_unexposed: int,
    rng: np.random.Generator,
) -> tuple[DoubleArray, DoubleArray]:
    """Return cross-fitted logits of the held-out exposed rows and of the unexposed pairs.

    Args:
        held: exposed rows unseen by the anchors; they stand for all ``n_exposed`` pairs.
        click: (number of held rows,) int8 in {0, 1}.
        unexposed: pairs of D_u, a sample of all ``n_unexposed``.
        fold: (U,) int32 fold of each user.
        correction: c in [0, 1], the power of the exposure propensity divided out.
        n_exposed: all pairs of D_e.
        n_unexposed: all pairs of D_u.
        rng: draws the rows to fit on.

    Returns:
        (number of held rows,) and (number of pairs,) float64.

    Raises:
        DataError: if some folds hold no click or no unexposed pair to fit on.
    """
    # Both sides are sampled at one rate, so that the fitted rows look like the recalled space.
    # (Weights would do as well, but weighted binning is slower than the whole fit.)
    n_held, n = len(held.user), len(unexposed.user)
    whole = n_exposed + n_unexposed
    rate = min(n_held / max(n_exposed, 1), n / max(n_unexposed, 1), MAX_ROWS / max(whole, 1))
    held_rows = _sample(n_held, round(rate * n_exposed), rng)
    rows = _sample(n, round(rate * n_unexposed), rng)
    features = np.vstack([held.features[held_rows], unexposed.features[rows]])
    fold_of = fold[np.concatenate([held.user[held_rows], unexposed.user[rows]])]
    clicked = np.concatenate([click[held_rows] == 1, np.zeros(len(rows), bool)])
    exposed = np.arange(len(features)) < len(held_rows)
    out_held, out_unexposed = np.zeros(n_held), np.zeros(n)
    held_fold, unexposed_fold = fold[held.user], fold[unexposed.user]
    for k in track(np.unique(fold), "joint map, folds"):
        others = fold_of != k
        _require_both(clicked[others], exposed[others])
        models = [
            _boosted(features[others], target[others], held.n_rising)
            for target in ((clicked, exposed) if correction else (clicked,))
        ]
        for out, space, mine in (
            (out_held, held, held_fold == k),
            (out_unexposed, unexposed, unexposed_fold == k),
        ):
            if mine.any():
                out[mine] = _logit(models, space.features[mine], correction)
    return out_held, out_unexposed


def _sample(n: int, size: int, rng: np.random.Generator) -> TimeArray:
    return np.sort(rng.choice(n, size=min(size, n), replace=False)).astype(np.int64)


def _boosted(
    features: NDArray[np.float32], target: NDArray[np.bool_], n_rising: int
) -> HistGradientBoostingClassifier:
    rising = [1] * n_rising + [0] * (features.shape[1] - n_rising)
    model = HistGradientBoostingClassifier(
        max_iter=100,
        max_leaf_nodes=15,
        max_bins=63,
        min_samples_leaf=min(200, max(1, len(features) // 50)),
        early_stopping=False,
        monotonic_cst=rising,
        random_state=0,
    )
    return model.fit(features, target)


def _logit(
    models: list[HistGradientBoostingClassifier],
    features: NDArray[np.float32],
    correction: float,
) -> DoubleArray:
    rate = models[0].predict_proba(features)[:, 1]
    if correction:
        propensity = np.maximum(models[1].predict_proba(features)[:, 1], LEAST_PROPENSITY)
        rate = rate / propensity**correction
    rate = np.clip(rate, LEAST_RATE, 1 - LEAST_RATE)
    return np.asarray(np.log(rate) - np.log1p(-rate), dtype=np.float64)


def _require_both(clicked: NDArray[np.bool_], exposed: NDArray[np.bool_]) -> None:
    if not clicked.any() or exposed.all():
        raise DataError(
            "the joint map has nothing to fit on",
            where="exposures and candidates",
            must="held-out clicks and unexposed pairs of users in at least two folds",
            got=f"{int(clicked.sum())} clicks, {int((~exposed).sum())} unexposed pairs",
            hint="use map = 'calibrated', or hold out more exposures",
        )
