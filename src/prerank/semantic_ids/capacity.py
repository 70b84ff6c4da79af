"""No semantic ID for more items than it may hold: the rest moves to the next best last code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import FloatArray, IntArray
from prerank.semantic_ids.quality import buckets
from prerank.semantic_ids.tokenizer import Tokenizer

DISTANCES = 1 << 24
"""Distances (items x codes of the last level) held at once."""


def relocate(
    tokenizer: Tokenizer,
    vectors: FloatArray,
    codes: IntArray,
    capacity: int,
    published: IntArray | None = None,
) -> tuple[IntArray, dict[str, int]]:
    """Return codes (N, L) with at most ``capacity`` items a semantic ID, and what was done.

    The limit is FORGE's (five items an ID; arXiv 2509.20904); who moves, and where to, is ours (C).
    Only the last code changes. Of the items of a crowded ID the nearest stay; each of the others
    asks for the nearest last code with room under the same prefix, and again if nearer items were
    faster. Prefixes do not touch each other, so they are worked on in blocks.

    Args:
        vectors, codes: (N, D) float32 and (N, L) int32, the items that may move.
        published: (P, L) int32, items that take up room and never move.

    Returns:
        The codes, and ``moved``: items with another last code; ``without_room``: items that keep
        a crowded ID because every code under their prefix is full.
    """
    n_fixed = 0 if published is None else len(published)
    every_NL = codes if published is None else np.concatenate([published, codes])
    sizes = [len(book) for book in tokenizer.codebooks]
    prefix_N, _ = buckets(every_NL[:, :-1], sizes[:-1])
    slot_N = prefix_N * sizes[-1] + every_NL[:, -1]
    _, number_N, count_S = np.unique(slot_N, return_inverse=True, return_counts=True)
    crowded_N = count_S[number_N] > capacity
    crowded_N[:n_fixed] = False
    crowded = np.flatnonzero(crowded_N)
    found_NL, left = codes.copy(), 0
    for rows, settled in _blocks(prefix_N, crowded, sizes[-1]):
        movers = rows - n_fixed
        place_B = np.unique(prefix_N[rows], return_inverse=True)[1]
        load_PK = np.zeros((int(place_B.max()) + 1, sizes[-1]), dtype=np.int64)
        here = np.searchsorted(np.unique(prefix_N[rows]), prefix_N[settled])
        np.add.at(load_PK, (here, every_NL[settled, -1]), 1)
        distance_BK = tokenizer.last_distances(vectors[movers], codes[movers])
        last_B = _place(distance_BK, place_B, load_PK, capacity)
        left += int((last_B < 0).sum())
        found_NL[movers, -1] = np.where(last_B >= 0, last_B, codes[movers, -1])
    moved = int((found_NL[:, -1] != codes[:, -1]).sum())
    return found_NL, {"moved": moved, "without_room": left}


def _blocks(
    prefix_N: NDArray[np.int64], crowded: NDArray[np.int64], n_codes: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield (crowded rows, the other rows of the same prefixes), whole prefixes at a time."""
    if not len(crowded):
        return
    crowded = crowded[np.argsort(prefix_N[crowded], kind="stable")]
    order = np.argsort(prefix_N, kind="stable")
    ordered_N = prefix_N[order]
    is_crowded_N = np.zeros(len(prefix_N), dtype=np.bool_)
    is_crowded_N[crowded] = True
    prefixes, first = np.unique(prefix_N[crowded], return_index=True)
    block_P = first // max(1, DISTANCES // n_codes)
    starts = np.flatnonzero(np.diff(block_P, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(prefixes)], strict=True):
        end = first[stop] if stop < len(prefixes) else len(crowded)
        mine = prefixes[start:stop]
        low = np.searchsorted(ordered_N, mine[0], "left")
        high = np.searchsorted(ordered_N, mine[-1], "right")
        near = order[low:high]
        near = near[~is_crowded_N[near] & np.isin(prefix_N[near], mine)]
        yield crowded[first[start] : end], near


def _place(
    distance_BK: FloatArray,
    place_B: NDArray[np.int64],
    load_PK: NDArray[np.int64],
    capacity: int,
) -> NDArray[np.int64]:
    """Return each row's code (B,), -1 without room; ``load_PK`` is filled up on the way."""
    n_codes = load_PK.shape[1]
    code_B = np.full(len(distance_BK), -1, dtype=np.int64)
    waiting = np.arange(len(distance_BK))
    while len(waiting):
        full_WK = load_PK[place_B[waiting]] >= capacity
        open_WK = np.where(full_WK, np.inf, distance_BK[waiting])
        best_W = open_WK.argmin(axis=1)
        gap_W = open_WK[np.arange(len(waiting)), best_W]
        has_room_W = np.isfinite(gap_W)
        waiting, best_W, gap_W = waiting[has_room_W], best_W[has_room_W], gap_W[has_room_W]
        slot_W = place_B[waiting] * n_codes + best_W
        order = np.lexsort((waiting, gap_W, slot_W))
        rank_W = np.empty(len(order), dtype=np.int64)
        rank_W[order] = _ranks(slot_W[order])
        taken_W = rank_W < capacity - load_PK.ravel()[slot_W]
        code_B[waiting[taken_W]] = best_W[taken_W]
        np.add.at(load_PK.reshape(-1), slot_W[taken_W], 1)
        waiting = waiting[~taken_W]
    return code_B


def _ranks(ordered_N: NDArray[Any]) -> NDArray[np.int64]:
    """Return 0, 1, 2 ... within each run of equal values."""
    position = np.arange(len(ordered_N))
    begins = np.diff(ordered_N, prepend=-1) != 0
    return position - np.maximum.accumulate(np.where(begins, position, 0))
