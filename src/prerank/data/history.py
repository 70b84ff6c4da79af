"""Histories: which interactions of a user lie strictly before a moment.

The one place that decides it, for anchors, confidence and pre-ranker alike (method.md section 5:
"histories strictly before the label's time"). Padding is -1 and stands on the left, so that the
most recent item is always the last column.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
    reader must leave the row's own item out (`without_own_item`).

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
    """Return the last ``length`` items of rows start:end as (N, length) int32, padded with -1."""
    position = end[:, None] + np.arange(-length, 0)
    inside = position >= start[:, None]
    if not len(interactions):
        return np.full(position.shape, PAD, dtype=np.int32)
    return np.where(inside, interactions.item[np.where(inside, position, 0)], PAD).astype(np.int32)


def without_own_item(history_NH: IntArray, item: IntArray) -> IntArray:
    """Return the histories with every occurrence of the row's own ``item`` (N,) set to padding."""
    return np.where(history_NH == item[:, None], np.int32(PAD), history_NH)


def row_histories(
    dataset: Dataset, user: IntArray, time: TimeArray, item: IntArray | None, length: int
) -> IntArray:
    """Return the history of each row, (N, length) int32, most recent last, padded with -1.

    Strictly before the row's time; where the data has no time, the row's own item is left out
    (pass ``item``; None when the rows have no item).
    """
    n_users = len(dataset.users)
    offsets = dataset.interactions.offsets(n_users)
    end = history_ends(dataset.interactions, n_users, dataset.time_unit, user, time)
    history_NH = last_items(dataset.interactions, offsets[user], end, length)
    if dataset.time_unit == "none" and item is not None:
        return without_own_item(history_NH, item)
    return history_NH


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


def anchor_histories(dataset: Dataset, length: int) -> IntArray:
    """Return each user's last ``length`` items before the anchor cut, (U, length), -1 = padding."""
    offsets = dataset.interactions.offsets(len(dataset.users))
    return last_items(dataset.interactions, offsets[:-1], anchor_ends(dataset), length)


def mask_of(history_NH: IntArray) -> NDArray[np.bool_]:
    """Return (N, H) bool: True where the history has an item."""
    mask: NDArray[np.bool_] = history_NH != PAD
    return mask
