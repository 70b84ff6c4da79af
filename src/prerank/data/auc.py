"""Area under the ROC curve, over all rows or by group, vectorised and exact under ties.

It lies below the stages because both training (early stopping) and evaluation need it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def auc(click: NDArray[Any], score: NDArray[Any]) -> float:
    """Return the probability that a clicked row outscores a not clicked one, ties counting half.

    Args:
        click: (N,) 0 or 1.
        score: (N,) finite, any scale.

    Returns:
        A float in [0, 1]; NaN where a class is absent.
    """
    values, _ = grouped_auc(np.zeros(len(click), dtype=np.int64), click, score)
    return float(values[0]) if len(values) else float("nan")


def grouped_auc(
    group: NDArray[Any], click: NDArray[Any], score: NDArray[Any]
) -> tuple[Values, NDArray[Any]]:
    """Return the AUC of each group.

    The Mann-Whitney form: (sum of the clicked rows' ranks - P(P + 1)/2) / (P N), ranks averaged
    over ties. GAUC is the plain mean of the values that are not NaN.

    Args:
        group: (N,) id of the group (user or request) of each row, in any order.
        click: (N,) 0 or 1.
        score: (N,) finite, any scale.

    Returns:
        values: (G,) float64 in [0, 1], NaN for a group that lacks a class.
        groups: (G,) the group ids, ascending.
    """
    order = np.lexsort((score, group))
    group, score, clicked = group[order], score[order], click[order] == 1
    n = len(group)
    if n == 0:
        return np.zeros(0), group
    new_group = np.append(True, group[1:] != group[:-1])
    new_tie = new_group | np.append(True, score[1:] != score[:-1])
    group_of = np.cumsum(new_group) - 1
    starts = np.flatnonzero(new_group)
    tie_starts = np.flatnonzero(new_tie)
    tie_ends = np.append(tie_starts[1:], n)
    middle = (tie_starts + tie_ends + 1) / 2  # mean of the 1-based ranks of a run of ties
    rank = middle[np.cumsum(new_tie) - 1] - starts[group_of]
    positives = np.bincount(group_of, weights=clicked)
    negatives = np.bincount(group_of) - positives
    rank_sum = np.bincount(group_of, weights=rank * clicked)
    pairs = positives * negatives
    wins = rank_sum - positives * (positives + 1) / 2
    values = np.full(len(starts), np.nan)
    np.divide(wins, pairs, out=values, where=pairs > 0)
    return values, group[starts]
