"""Labels from a ranker's scores: the label side of the baselines that distil.

g is the teacher's click probability of an unexposed pair, prior the expected click rate of D_u
(`calibration.stated_prior`, logs before test), share a stated part.

    soft            label g for every pair                                   KD-all, TL, UKD
    two-threshold   1 for the share * prior best pairs, 0 for the            MUDA
                    share * (1 - prior) worst, the others abstain
    surest          label g for the same best and worst, the others abstain  SIDA

Sources. MUDA: Wang et al., "An Empirical Study of Selection Bias in Pinterest Ads Retrieval", KDD
2023, doi 10.1145/3580305.3599771: ranker scores cut by two thresholds (S), which they tune;
ours follow from the prior, so that no validation is spent on them (C). SIDA: KDD 2024, doi
10.1145/3637528.3671580: select among the recalled, adapt a ranker to unexposed items, distil its
exposure-independent scores (S, abstract); the acronym and which pairs are selected are inferred.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from prerank.artifacts import Dataset, FloatArray, IntArray, PseudoLabels, TimeArray
from prerank.labels.calibration import PriorCounts, stated_prior
from prerank.labels.chosen import Chosen
from prerank.labels.config import LabelConfig
from prerank.labels.plain import plain_labels

ScorePairs = Callable[[IntArray, IntArray, TimeArray], FloatArray]
"""(N,) user, item and time -> (N,) float32 logits: how a stage below asks the teacher."""


def extremes(
    score: NDArray[np.floating], prior: float, share: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return (N,) bool: the ``share * prior`` best rows, and the ``share * (1 - prior)`` worst.

    Both counts are rounded; equal scores are told apart by their place.
    """
    n = len(score)
    order = np.argsort(score, kind="stable")
    best, worst = np.zeros(n, bool), np.zeros(n, bool)
    best[order[n - round(share * prior * n) :]] = True
    worst[order[: round(share * (1 - prior) * n)]] = True
    return best, worst


def teacher_labels(
    dataset: Dataset,
    chosen: Chosen,
    score_pairs: ScorePairs,
    config: LabelConfig,
) -> PseudoLabels:
    """Label ``pairs`` by the teacher's scores, as ``config.teacher_rule`` says.

    Args:
        dataset: for the prior.
        chosen: the pairs.
        score_pairs: the teacher.
        config: of the label stage.
    """
    pairs = chosen.pairs
    logit = score_pairs(pairs.user, pairs.item, pairs.time)
    label, known = expit(logit.astype(np.float64)), np.ones(len(pairs), bool)
    fit: dict[str, object] = {"rule": config.teacher_rule}
    if config.teacher_rule != "soft":
        counts = PriorCounts.of(dataset, chosen.beside)
        prior, how = stated_prior(counts, chosen.n_unexposed, config.prior)
        best, worst = extremes(logit, prior, config.teacher_share)
        known = best | worst
        fit |= {"prior": prior, "prior_source": how, "share": config.teacher_share}
        if config.teacher_rule == "two-threshold":
            label = best.astype(np.float64)
    return plain_labels(pairs, label, known.astype(np.float64), "teacher", fit)
