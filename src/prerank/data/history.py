"""Histories: which interactions of a user lie strictly before a moment.

The one place that decides where a history ends, for anchors, confidence and pre-ranker alike
(method.md section 5: "histories strictly before the label's time"). Which of its items a pre-ranker
reads is `ranking.context`'s, which an anchor's model reads `anchors.sequences`'.
"""

from __future__ import annotations

import numpy as np

from prerank.artifacts import Dataset, IntArray, Interactions, TimeArray, TimeUnit

PAD = -1
FEW = 64  # a bisection step a row costs about as much as this many rows sorted


def history_ends(
    interactions: Interactions,
    n_users: int,
    time_unit: TimeUnit,
    user: IntArray,
    time: TimeArray,
) -> TimeArray:
    """Return for each row the end (exclusive) of its history in ``interactions``.

    The history of row n is ``interactions`` rows ``offsets[user[n]] : end[n]``, all of them
    strictly before ``time[n]``. Without time the whole set of the user is its history, and the
    reader must leave the row's own item out (`ScoringContext.left_out`).

    Args:
        interactions: all positives, sorted by user then time.
        n_users: U.
        time_unit: of the dataset.
        user: (N,) int32.
        time: (N,) int64.

    Returns:
        (N,) int64.
    """
    if time_unit == "none" or not len(interactions):
        return interactions.offsets(n_users)[1:][user]
    if len(user) * FEW < len(interactions):
        return _bisected(interactions, user, time)
    moments = np.unique(interactions.time)
    width = len(moments) + 1
    key = interactions.user.astype(np.int64) * width + np.searchsorted(moments, interactions.time)
    wanted = user.astype(np.int64) * width + np.searchsorted(moments, time, side="left")
    return np.searchsorted(key, wanted, side="left").astype(np.int64)


def _bisected(interactions: Interactions, user: IntArray, time: TimeArray) -> TimeArray:
    """Return `history_ends` by bisection inside each row's user: few rows of a long log."""
    low = np.searchsorted(interactions.user, user).astype(np.int64)
    high = np.searchsorted(interactions.user, user, side="right").astype(np.int64)
    while (open_ := low < high).any():
        middle = (low + high) // 2
        earlier = interactions.time[np.minimum(middle, len(interactions) - 1)] < time
        low = np.where(open_ & earlier, middle + 1, low)
        high = np.where(open_ & ~earlier, middle, high)
    return low


def last_items(
    interactions: Interactions, start: TimeArray, end: TimeArray, length: int
) -> IntArray:
    """Return the last ``length`` items of rows start:end as (N, length) int32, most recent last.

    Padding is -1 and stands on the left.
    """
    position = end[:, None] + np.arange(-length, 0)
    inside = position >= start[:, None]
    if not len(interactions):
        return np.full(position.shape, PAD, dtype=np.int32)
    return np.where(inside, interactions.item[np.where(inside, position, 0)], PAD).astype(np.int32)


def anchor_ends(dataset: Dataset) -> TimeArray:
    """Return (U,) int64: the end of each user's history as anchors may see it.

    That is everything before ``cuts.anchors``; all interactions where that cut is None.
    """
    n_users = len(dataset.users)
    if dataset.cuts.anchors is None:
        return dataset.interactions.offsets(n_users)[1:]
    user = np.arange(n_users, dtype=np.int32)
    time = np.full(n_users, dataset.cuts.anchors, dtype=np.int64)
    return history_ends(dataset.interactions, n_users, dataset.time_unit, user, time)
