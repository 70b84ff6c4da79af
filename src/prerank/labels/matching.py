"""Match of pairs with anchors: r(u, h) = pool_k cos(e_h, a_k), many users at a time.

Source: method.md stage 5. S: both sides in the frozen space, relevance = max-pooled cosine.
C: the other three pools.

Users differ in their number of pairs and of anchors. They are cut into units of at most ``TILE``
queries, sorted by size, padded within blocks of a bounded number of bytes, and each block is one
batched matrix product. No user, pair or anchor is visited by Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import (
    FloatArray,
    IntArray,
    InterestAnchors,
    ItemEmbeddings,
    TimeArray,
    chunk_bounds,
)
from prerank.labels.config import LabelConfig
from prerank.spread import Arrays, Spread, here

Pool = Literal["max", "top-m", "log-sum-exp", "probability-weighted"]
TILE = 1024
PAIRS_AT_ONCE = 1 << 22
"""Pairs of a task: memory beyond the result is bounded by it. Blocks never span two tasks, so a
result does not depend on where tasks are computed."""
BLOCK_BYTES = 2 << 20


@dataclass(frozen=True, eq=False)
class Groups:
    """Rows of a table by group: group g holds ``rows[start[g] : start[g] + count[g]]``.

    Attributes:
        table: (R, D) float32.
        rows: (N,) integer row numbers of ``table``.
        start, count: (G,) int64.
    """

    table: FloatArray
    rows: NDArray[np.integer]
    start: TimeArray
    count: TimeArray


@dataclass(frozen=True, eq=False)
class Match:
    """How well each pair fits the anchors of its user.

    Attributes:
        relevance: (N,) float32 in [-1, 1]; NaN where there is nothing to compare.
        anchor: (N,) int64 row of the nearest anchor (largest cosine, first of equals); -1 if none.
    """

    relevance: FloatArray
    anchor: TimeArray


@dataclass(frozen=True)
class Pooling:
    """How the cosines of one pair to all anchors become its relevance.

    ``max``: the largest (S). ``top-m``: mean of the ``top_m`` largest (C). ``log-sum-exp``:
    t log mean_k exp(cos_k / t), a soft maximum that does not grow with the number of anchors (C).
    ``probability-weighted``: t log sum_k p_k exp(cos_k / t), the same with the anchors' probability
    in the place of equal shares (C): nearness to what the LLM expects, not to any of its guesses.
    """

    pool: Pool = "max"
    top_m: int = LabelConfig().top_m
    temperature: float = LabelConfig().temperature

    @classmethod
    def of(cls, config: LabelConfig) -> Pooling:
        """Return what a label stage says, with the one number that it reads."""
        match config.match:
            case "max":
                return cls()
            case "top-m":
                return cls("top-m", top_m=config.top_m)
            case soft:
                return cls(soft, temperature=config.temperature)

    @property
    def described(self) -> str:
        """The pool with the one number that it reads."""
        told = {"max": "", "top-m": f" {self.top_m}"}
        return f"{self.pool}{told.get(self.pool, f' {self.temperature:g}')}"


def match_pairs(
    user: IntArray,
    item: IntArray,
    embeddings: ItemEmbeddings,
    anchors: InterestAnchors,
    pooling: Pooling = Pooling(),
    spread: Spread = here,
) -> Match:
    """Return the relevance and the nearest anchor of each (user, item) pair.

    Args:
        user, item: (N,) int32, in any order.
        embeddings: (I, D) unit rows; items without content match nothing.
        anchors: of all users; users without anchors match nothing.
        pooling: how cosines become one relevance.
        spread: where tasks of at most ``PAIRS_AT_ONCE`` pairs, whole users, are matched.

    Returns:
        Match of N rows, in the order given. Memory beyond the result is bounded by ``BLOCK_BYTES``
        and a few integers a pair.
    """
    order = np.argsort(user, kind="stable")
    bounds = np.searchsorted(user[order], np.arange(anchors.n_users + 1)).astype(np.int64)
    cuts = chunk_bounds(bounds, PAIRS_AT_ONCE)
    ordered, share = item[order], None
    if pooling.pool == "probability-weighted":
        share = _shares(anchors)
    tasks = [
        _task(ordered, bounds[first : last + 1], anchors, share, first)
        for first, last in pairwise(cuts)
    ]
    ready = partial(_ready, embeddings.vectors, anchors.points, pooling)
    relevance = np.empty(len(user), dtype=np.float32)
    anchor = np.empty(len(user), dtype=np.int64)
    for number, found in spread(ready, tasks):
        first, last = cuts[number], cuts[number + 1]
        rows = order[bounds[first] : bounds[last]]
        matched = found["anchor"] >= 0
        relevance[rows] = found["relevance"]
        anchor[rows] = np.where(matched, found["anchor"] + anchors.offsets[first], -1)
    blank = ~np.any(embeddings.vectors, axis=1)[item]
    relevance[blank], anchor[blank] = np.nan, -1
    return Match(relevance, anchor)


def _task(
    item: IntArray,
    bounds: TimeArray,
    anchors: InterestAnchors,
    share: FloatArray | None,
    first: int,
) -> Arrays:
    """Return the pairs of some users, and the points they are matched with; views, no copies."""
    offsets = anchors.offsets[first : first + len(bounds)]
    known = slice(offsets[0], offsets[-1])
    task: dict[str, NDArray[Any]] = {
        "item": item[bounds[0] : bounds[-1]],
        "pairs": np.diff(bounds),
        "anchors": np.diff(offsets),
        "point": anchors.point[known],
    }
    return task if share is None else {**task, "share": share[known]}


def _ready(vectors: FloatArray, points: FloatArray, pooling: Pooling) -> Callable[[Arrays], Arrays]:
    def match(task: Arrays) -> Arrays:
        pairs, known = task["pairs"], task["anchors"]
        queries = Groups(vectors, task["item"], np.cumsum(pairs) - pairs, pairs)
        keys = Groups(points, task["point"], np.cumsum(known) - known, known)
        found = match_groups(queries, keys, pooling, task.get("share"))
        return {"relevance": found.relevance, "anchor": found.anchor}

    return match


def _shares(anchors: InterestAnchors) -> FloatArray:
    """Return (A,) float32: the share of each anchor in the probability of its user's anchors.

    Anchors without a probability (logprob 0: the user's own history, or a control) stand for equal
    shares; where they are joined with the LLM's, each kind holds half of the whole.
    """
    share = np.empty(len(anchors.logprob))
    user, given = anchors.users(), anchors.logprob < 0
    for kind in (given, ~given):
        logprob = anchors.logprob[kind].astype(np.float64)
        best_U = np.full(anchors.n_users, -np.inf)
        np.maximum.at(best_U, user[kind], logprob)
        # Compared with the user's best one: alone, a probability may be too small for a number.
        probability = np.exp(logprob - best_U[user[kind]])
        whole_U = np.bincount(user[kind], probability, minlength=anchors.n_users)
        share[kind] = probability / whole_U[user[kind]]
    return share.astype(np.float32)


def match_groups(
    queries: Groups, keys: Groups, pooling: Pooling, key_share: FloatArray | None = None
) -> Match:
    """Match every query row with the key rows of its own group.

    Args:
        queries: groups that tile ``queries.rows`` in order.
        keys: one group for each group of queries; may be empty.
        pooling: how cosines become one relevance.
        key_share: weight of each entry of ``keys.rows``, for ``probability-weighted``.

    Returns:
        Match in the order of ``queries.rows``; ``anchor`` is a position in ``keys.rows``.
    """
    n = len(queries.rows)
    relevance = np.full(n, np.nan, dtype=np.float32)
    anchor = np.full(n, -1, dtype=np.int64)
    for block in _blocks(queries, keys):
        query_BC, inside_BC = _padded(block.query_start, block.query_count)
        key_BA, known_BA = _padded(block.key_start, block.key_count)
        query_BCD = queries.table[queries.rows[query_BC]]
        key_BAD = keys.table[keys.rows[key_BA]]
        cosine_BCA = np.matmul(query_BCD, key_BAD.transpose(0, 2, 1))
        best_BC = _nearest(cosine_BCA, block.key_count)
        share_BA = None if key_share is None else key_share[key_BA]
        pooled_BC = _pool(cosine_BCA, best_BC, known_BA, share_BA, pooling)
        found = query_BC[inside_BC]
        relevance[found] = pooled_BC[inside_BC]
        anchor[found] = (block.key_start[:, None] + best_BC)[inside_BC]
    return Match(np.clip(relevance, -1, 1, out=relevance), anchor)


@dataclass(frozen=True, eq=False)
class _Block:
    query_start: TimeArray
    query_count: TimeArray
    key_start: TimeArray
    key_count: TimeArray


def _blocks(queries: Groups, keys: Groups) -> Iterator[_Block]:
    """Cut the groups into units and the units, sorted by size, into blocks of bounded memory."""
    group = np.flatnonzero((queries.count > 0) & (keys.count > 0))
    tiles = -(-queries.count[group] // TILE)
    unit = np.repeat(group, tiles)
    if not len(unit):
        return
    first = np.repeat(np.cumsum(tiles) - tiles, tiles)
    offset = (np.arange(len(unit)) - first) * TILE
    count = np.minimum(queries.count[unit] - offset, TILE)
    width = _grid(keys.count[unit])
    order = np.lexsort((count, width))
    unit, offset, count, width = unit[order], offset[order], count[order], width[order]
    cells = count * (queries.table.shape[1] + width) + width * queries.table.shape[1]
    part = np.cumsum(cells * np.int64(4)) // BLOCK_BYTES
    # Rows of a block are padded to its longest: units of like size only, or one makes all large.
    unlike = (np.diff(width) > 0) | (np.diff(_grid(count)) > 0)
    edge = np.flatnonzero((np.diff(part) > 0) | unlike) + 1
    for rows in np.split(np.arange(len(unit)), edge):
        u = unit[rows]
        yield _Block(queries.start[u] + offset[rows], count[rows], keys.start[u], keys.count[u])


def _grid(size: TimeArray) -> TimeArray:
    """Round sizes up to the next quarter power of two, so that few shapes are left to pad to."""
    return np.ceil(2.0 ** (np.ceil(np.log2(size) * 4 - 1e-9) / 4)).astype(np.int64)


def _padded(start: TimeArray, count: TimeArray) -> tuple[TimeArray, NDArray[np.bool_]]:
    """Return positions (B, W), the last one repeated to fill up, and which of them are real."""
    step = np.arange(count.max())
    inside = step < count[:, None]
    return start[:, None] + np.minimum(step, count[:, None] - 1), inside


def _nearest(cosine_BCA: FloatArray, known_B: TimeArray) -> TimeArray:
    """Return (B, C) the column of the largest cosine, the first of equals, below ``known_B`` (B,).

    Padding repeats the last key. A product may round equal columns differently, so that a padded
    one comes out on top: it stands for that key.
    """
    found: TimeArray = np.minimum(cosine_BCA.argmax(axis=2), known_B[:, None] - 1)
    return found


def _pool(
    cosine_BCA: FloatArray,
    best_BC: TimeArray,
    known_BA: NDArray[np.bool_],
    share_BA: FloatArray | None,
    pooling: Pooling,
) -> FloatArray:
    if pooling.pool == "max":
        nearest: FloatArray = np.take_along_axis(cosine_BCA, best_BC[:, :, None], axis=2)[:, :, 0]
        return nearest
    hidden_BCA = np.where(known_BA[:, None, :], cosine_BCA, np.float32(-np.inf))
    if pooling.pool == "top-m":
        return _mean_of_top(hidden_BCA, known_BA.sum(axis=1), pooling.top_m)
    weight_BA = known_BA.astype(np.float32)
    if pooling.pool == "probability-weighted":
        assert share_BA is not None
        weight_BA *= share_BA
    return _soft_maximum(hidden_BCA, weight_BA, pooling.temperature)


def _mean_of_top(hidden_BCA: FloatArray, n_known_B: TimeArray, top_m: int) -> FloatArray:
    m = min(top_m, hidden_BCA.shape[2])
    top_BCm = np.partition(hidden_BCA, -m, axis=2)[:, :, -m:]
    total_BC = np.where(np.isfinite(top_BCm), top_BCm, 0).sum(axis=2)
    return np.asarray(total_BC / np.minimum(n_known_B, m)[:, None], dtype=np.float32)


def _soft_maximum(hidden_BCA: FloatArray, weight_BA: FloatArray, temperature: float) -> FloatArray:
    best_BC1 = hidden_BCA.max(axis=2, keepdims=True)
    near_BCA = np.exp((hidden_BCA - best_BC1) / np.float32(temperature))
    # The smallest positive number keeps log finite where all weight lies far from the best.
    total_BC = np.matmul(near_BCA, weight_BA[:, :, None])[:, :, 0] + np.finfo(np.float32).tiny
    pooled_BC = best_BC1[:, :, 0] + temperature * np.log(total_BC / weight_BA.sum(axis=1)[:, None])
    return np.asarray(pooled_BC, dtype=np.float32)
