"""Items a user never met, drawn from a stated distribution.

They are assumed negatives: nobody asked the user. Whoever calls this says so in ``notes``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import IntArray, TimeArray
from prerank.data.unexposed import contains, pair_keys, sorted_unique

ROUNDS = 30


def popularity_weights(item: IntArray, n_items: int, power: float) -> NDArray[np.float64]:
    """Return (I,) probabilities proportional to (number of rows of the item + 1) ** power."""
    return weights_of(np.bincount(item, minlength=n_items), power)


def weights_of(counts: NDArray[np.integer], power: float) -> NDArray[np.float64]:
    """Return (I,) probabilities proportional to (count + 1) ** power."""
    weight = (counts + 1.0) ** power
    return np.asarray(weight / weight.sum(), dtype=np.float64)


def draw_unmet(
    user: IntArray,
    met: TimeArray,
    weights: NDArray[np.float64],
    n: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], IntArray]:
    """Draw up to ``n`` distinct items for every row, none of which the row's user has met.

    Rejection sampling, so the items of a row are a sample without replacement by ``weights``.
    Where a catalog is so small that a row cannot be filled in `ROUNDS` rounds, it stays short.

    Args:
        user: (N,) int32 user of each row.
        met: sorted unique `pair_keys` of all (user, item) pairs that must not be drawn.
        weights: (I,) probabilities.
        n: items a row.
        rng: random numbers.

    Returns:
        row (M,) int64 and item (M,) int32, sorted by row, then item.
    """
    cumulative = np.cumsum(weights)
    taken = np.zeros(0, dtype=np.int64)
    missing = np.full(len(user), n, dtype=np.int64)
    for _ in range(ROUNDS):
        row = np.repeat(np.arange(len(user), dtype=np.int64), missing)
        if not len(row):
            break
        drawn = np.searchsorted(cumulative, rng.random(len(row)) * cumulative[-1], side="right")
        item = np.minimum(drawn, len(weights) - 1).astype(np.int32)
        fresh = ~contains(met, pair_keys(user[row], item))
        key = sorted_unique(row[fresh] << 32 | item[fresh].astype(np.int64))
        taken = np.sort(np.concatenate([taken, key[~contains(taken, key)]]))
        missing = n - np.bincount(taken >> 32, minlength=len(user))
    return taken >> 32, (taken & 0xFFFFFFFF).astype(np.int32)


def with_negatives(
    columns: dict[str, NDArray[Any]],
    met: TimeArray,
    weights: NDArray[np.float64],
    n: int,
    rng: np.random.Generator,
) -> dict[str, NDArray[Any]]:
    """Return the clicked rows of ``columns``, each followed by its drawn negatives.

    Args:
        columns: ``user``, ``item`` (N,) int32 and any other columns, which negatives copy.
        met: sorted unique pair keys that must not be drawn.
        weights: (I,) probabilities.
        n: negatives a row.
        rng: random numbers.

    Returns:
        The same columns for all rows, plus ``row`` (index of the positive) and ``click`` int8;
        sorted by row, then item, so that a row's place says nothing of its click.
    """
    n_rows = len(columns["user"])
    row, item = draw_unmet(columns["user"], met, weights, n, rng)
    row = np.concatenate([np.arange(n_rows, dtype=np.int64), row])
    item = np.concatenate([columns["item"], item])
    click = np.zeros(len(row), dtype=np.int8)
    click[:n_rows] = 1
    order = np.lexsort((item, row))
    copied = {name: values[row[order]] for name, values in columns.items()}
    return {**copied, "item": item[order], "click": click[order], "row": row[order]}
