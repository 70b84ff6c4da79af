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

    The Mann-Whitney form: pairs of a clicked and a not clicked row that the clicked one wins,
    ties counting half, over P N. GAUC is the plain mean of the values that are not NaN.

    Args:
        group: (N,) id of the group (user or request) of each row, in any order.
        click: (N,) 0 or 1.
        score: (N,) finite, any scale.

    Returns:
        values: (G,) float64 in [0, 1], NaN for a group that lacks a class.
        groups: (G,) the group ids, ascending.
    """
    order = np.lexsort((score, group))
    return sorted_auc(group[order], click[order], score[order])


def sorted_auc(
    group: NDArray[Any], click: NDArray[Any], score: NDArray[Any]
) -> tuple[Values, NDArray[Any]]:
    """Return what `grouped_auc` does, for rows already sorted by group, then rising score.

    Runs of equal group and score are counted as one: a run of p clicked and q not clicked rows
    above b not clicked ones of its group wins p (b + q / 2) pairs.
    """
    if not len(group):
        return np.zeros(0), group
    new_group = np.append(True, group[1:] != group[:-1])
    start = np.flatnonzero(new_group | np.append(True, score[1:] != score[:-1]))
    length = np.diff(start, append=len(group))
    positive = np.add.reduceat((click == 1).astype(np.int64), start)
    negative = length - positive
    first = np.flatnonzero(new_group[start])  # first run of each group
    runs = np.diff(first, append=len(start))
    below = np.cumsum(negative) - negative
    below -= np.repeat(below[first], runs)
    twice_wins = np.add.reduceat(positive * (2 * below + negative), first)
    pairs = np.add.reduceat(positive, first) * np.add.reduceat(negative, first)
    values = np.full(len(first), np.nan)
    np.divide(twice_wins, 2 * pairs, out=values, where=pairs > 0)
    return values, group[start[first]]
