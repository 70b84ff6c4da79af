"""Metrics of one ranking, each a plain function over columns.

Letters in shapes: N rows, Q requests, U users, I items, D dims, k list length.

**Ties.** Scores may tie, and a sort that follows the order of the file would then favour
whatever the file puts first. Every metric here is the expected value under a random order of
tied rows: a row inside a run of ties gets the average of the places the run covers. Only
`intra_list_diversity`, which looks at pairs, takes one order: the order of rows it is given.

**Segments.** AUC, GAUC and ECE restrict the rows. HR and NDCG rank the whole request and count
the positives of the segment only: the list a user sees is one list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prerank.data.auc import auc, grouped_auc, sorted_auc

__all__ = [
    "Ranking",
    "auc",
    "calibration_bins",
    "coverage",
    "expected_calibration_error",
    "gini",
    "grouped_auc",
    "hit_rate",
    "intra_list_diversity",
    "list_frequency",
    "ndcg",
    "rank_rows",
    "sigmoid",
    "sort_rows",
    "user_auc",
]

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]
Values = NDArray[np.float64]


def sort_rows(score: NDArray[np.float32], group: NDArray[Any] | None = None) -> Rows:
    """Return the rows by rising score, or by group, then rising score; ties in row order.

    Sorts 64-bit keys that carry the row in their low half: several times faster than a stable
    argsort, and the same on every processor. The high half is the score's bits, turned so that
    they rise with the score (a negative float32 counts down in its bits).

    Args:
        score: (N,) float32, finite, N < 2**32.
        group: (N,) integers in [0, 2**32).

    Returns:
        (N,) int64.
    """
    bits = (score + np.float32(0)).view(np.uint32)  # + 0 turns -0.0 into 0.0
    rising = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    order = _argsort(rising)
    return order if group is None else order[_argsort(group[order])]


def _argsort(values: NDArray[Any]) -> Rows:
    """Return the stable order of (N,) integers in [0, 2**32)."""
    key = values.astype(np.uint64) << np.uint64(32)
    key |= np.arange(len(values), dtype=np.uint64)
    key.sort()
    return (key & np.uint64(0xFFFFFFFF)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Ranking:
    """Where each row stands in its request.

    Attributes:
        request: (N,) int64 in [0, Q).
        n_requests: Q.
        order: (N,) int64 rows by request, then rising score.
        above: (N,) int64, by row: rows of the same request with a higher score.
        tied: (N,) int64 >= 1, by row: rows of the same request with this score, itself included.
    """

    request: Rows
    n_requests: int
    order: Rows
    above: Rows
    tied: Rows

    def in_top(self, k: int) -> Values:
        """Return (N,) in [0, 1]: the probability that the row stands in the top k."""
        return np.clip((k - self.above) / self.tied, 0.0, 1.0)


def rank_rows(score: NDArray[np.float32], request: NDArray[Any], n_requests: int) -> Ranking:
    """Rank the rows of every request by falling score; see `Ranking`.

    Args:
        score: (N,) float32, finite.
        request: (N,) integers in [0, n_requests).
        n_requests: Q.
    """
    n = len(score)
    order = sort_rows(score, request)
    request_sorted, score_sorted = request[order], score[order]
    new_run = np.ones(n, dtype=np.bool_)
    new_run[1:] = (request_sorted[1:] != request_sorted[:-1]) | (
        score_sorted[1:] != score_sorted[:-1]
    )
    starts = np.flatnonzero(new_run)
    ends = np.append(starts[1:], n)
    request_ends = np.cumsum(np.bincount(request, minlength=n_requests))
    above_run = request_ends[request_sorted[starts]] - ends if n else ends
    lengths = ends - starts if n else ends
    above, tied = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    if n:
        above[order] = np.repeat(above_run, lengths)
        tied[order] = np.repeat(lengths, lengths)
    return Ranking(request.astype(np.int64, copy=False), n_requests, order, above, tied)


def user_auc(
    user: NDArray[Any], click: NDArray[Any], score: NDArray[Any], order: Rows, n_users: int
) -> Values:
    """Return the AUC of each user, (U,) float64 in [0, 1], NaN without both classes.

    AUC_u = (clicked rows above not clicked ones + half the ties) / (P_u * N_u).
    GAUC is the plain mean of the values that are not NaN.

    Args:
        user: (N,) integers in [0, n_users).
        click: (N,) 0 or 1.
        score: (N,) finite.
        order: (M,) rows to use, by user, then rising score.
        n_users: U.
    """
    values = np.full(n_users, np.nan)
    found, groups = sorted_auc(user[order], click[order], score[order])
    values[groups] = found
    return values


def _positives(ranking: Ranking, positive: Mask) -> tuple[Rows, Values, Values]:
    """Return the positive rows; their count and that of all rows in each request, (Q,) both."""
    rows = np.flatnonzero(positive)
    count = np.bincount(ranking.request[rows], minlength=ranking.n_requests)
    size = np.bincount(ranking.request, minlength=ranking.n_requests)
    return rows, count.astype(np.float64), size.astype(np.float64)


def hit_rate(ranking: Ranking, positive: Mask, k: int) -> Values:
    """Return HR@k of each request, (Q,) in [0, 1], NaN for a request that tells nothing.

    HR@k = (positives among the top k) / min(k, positives). With one positive a request this is
    the usual hit rate. A request tells nothing where any order gives the same: without a
    positive, with positives alone, or with k rows or fewer.

    Args:
        ranking: of all rows.
        positive: (N,) bool: the rows to find.
        k: list length.
    """
    rows, count, size = _positives(ranking, positive)
    chance = np.clip((k - ranking.above[rows]) / ranking.tied[rows], 0.0, 1.0)
    hits = np.bincount(ranking.request[rows], weights=chance, minlength=ranking.n_requests)
    rate = _ratio(hits, np.minimum(count, k))
    return np.where((size > k) & (count < size), rate, np.nan)


def ndcg(ranking: Ranking, positive: Mask, k: int) -> Values:
    """Return NDCG@k of each request, (Q,) in [0, 1], NaN without a positive or with them alone.

    DCG@k = sum over positives at place p <= k of 1 / log2(p + 1); divided by the DCG of a list
    with all positives first. Tied rows share the mean discount of their places (as
    `sklearn.metrics.ndcg_score` does).

    Args:
        ranking: of all rows.
        positive: (N,) bool, the gains.
        k: list length.
    """
    rows, count, size = _positives(ranking, positive)
    total = np.append(0.0, np.cumsum(1 / np.log2(np.arange(k) + 2)))  # of the first p places
    first = np.minimum(ranking.above[rows], k)
    last = np.minimum(ranking.above[rows] + ranking.tied[rows], k)
    gain = (total[last] - total[first]) / ranking.tied[rows]
    dcg = np.bincount(ranking.request[rows], weights=gain, minlength=ranking.n_requests)
    found = _ratio(dcg, total[np.minimum(count, k).astype(np.int64)])
    return np.where(count < size, found, np.nan)


def list_frequency(
    ranking: Ranking, item: NDArray[Any], n_items: int, k: int
) -> tuple[NDArray[Any], Values]:
    """Return how often each item is listed, and the chance that it is listed at all.

    Args:
        ranking: of all rows.
        item: (N,) integers in [0, n_items).
        n_items: I.
        k: list length.

    Returns:
        frequency: (I,) expected number of top-k lists that hold the item.
        listed: (I,) in [0, 1]: probability that at least one list holds it.
    """
    chance = ranking.in_top(k)
    frequency = np.bincount(item, weights=chance, minlength=n_items)
    with np.errstate(divide="ignore"):
        missed = np.bincount(item, weights=np.log1p(-chance), minlength=n_items)
    return frequency, -np.expm1(missed)


def coverage(listed: Values, available: Mask) -> float:
    """Return the share of the available items that stand in somebody's list; NaN if none is.

    Args:
        listed: (I,) from `list_frequency`.
        available: (I,) bool: the items of the pool (of the segment).
    """
    return float(listed[available].mean()) if available.any() else float("nan")


def gini(frequency: NDArray[Any]) -> float:
    """Return the Gini index of how often items are listed: 0 all alike, towards 1 one takes all.

    G = sum_i (2 i - n - 1) x_i / (n sum x), x rising, i from 1. NaN if nothing is listed.

    Args:
        frequency: (n,) >= 0, of the items of the pool, never listed ones included.
    """
    n, total = len(frequency), frequency.sum()
    if not total > 0:
        return float("nan")
    rising = np.sort(frequency)
    return float(((2 * np.arange(1, n + 1) - n - 1) * rising).sum() / (n * total))


def intra_list_diversity(
    ranking: Ranking, item: NDArray[Any], vectors: NDArray[np.float32], k: int
) -> Values:
    """Return the diversity of each request's list, (Q,) in [0, 2], NaN below two items.

    ILD@k = 1 - mean pairwise cosine of the top k, from the sum s of the n unit vectors:
    mean cosine = (|s|^2 - sum |v|^2) / (n (n - 1)). Ties keep the order of rows.

    Args:
        ranking: of all rows.
        item: (N,) row of ``vectors``.
        vectors: (I, D) float32, unit rows (zeros for an item without content).
        k: list length.
    """
    size = np.bincount(ranking.request, minlength=ranking.n_requests)
    end = np.cumsum(size)
    place = end[ranking.request[ranking.order]] - 1 - np.arange(len(ranking.order))
    listed = ranking.order[place < k]
    request, chosen = ranking.request[listed], item[listed]
    n = np.minimum(size, k).astype(np.float64)
    offsets = np.flatnonzero(np.diff(request, prepend=-1))
    squared_sum, own = np.zeros(ranking.n_requests), np.zeros(ranking.n_requests)
    # A block of requests at a time: (block * k, D) floats, never (N, D).
    step = max(1, 4_000_000 // max(1, k * vectors.shape[1]))
    for low in range(0, len(offsets), step):
        starts = offsets[low : low + step]
        stop = offsets[low + step] if low + step < len(offsets) else len(chosen)
        block = vectors[chosen[starts[0] : stop]].astype(np.float64)
        where = request[starts]
        total = np.add.reduceat(block, starts - starts[0], axis=0)
        squared_sum[where] = np.einsum("qd,qd->q", total, total)
        own[where] = np.add.reduceat(np.einsum("nd,nd->n", block, block), starts - starts[0])
    return 1 - _ratio(squared_sum - own, n * (n - 1))


def sigmoid(logit: NDArray[Any]) -> Values:
    """Return 1 / (1 + exp(-x)) in float64, without overflow."""
    small = np.exp(-np.abs(logit.astype(np.float64)))
    return np.where(logit >= 0, 1 / (1 + small), small / (1 + small))


def calibration_bins(
    probability: Values, click: NDArray[Any], n_bins: int
) -> tuple[Values, Values, Values]:
    """Return count, mean prediction and click rate of equal-mass bins, rising, none of them empty.

    The edges are the i/n_bins quantiles of the predictions (an observed value each); equal
    predictions always share a bin, so the bins do not depend on the order of rows.

    Args:
        probability: (N,) in [0, 1]; rows already sorted by it make it fast.
        click: (N,) 0 or 1.
        n_bins: number of bins wanted.

    Returns:
        Three (B,) float64 arrays, B <= n_bins.
    """
    n = len(probability)
    if not n:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    order = np.argsort(probability, kind="stable")
    rising, clicked = probability[order], np.cumsum(click[order], dtype=np.float64)
    edges = rising[np.arange(n_bins) * n // n_bins]
    start = np.unique(np.searchsorted(rising, edges))
    end = np.append(start[1:], n)
    count = (end - start).astype(np.float64)
    clicks = np.diff(clicked[end - 1], prepend=0.0)
    return count, np.add.reduceat(rising, start) / count, clicks / count


def expected_calibration_error(probability: Values, click: NDArray[Any], n_bins: int) -> float:
    """Return ECE = sum_b (n_b / N) |mean prediction_b - click rate_b| over equal-mass bins.

    In [0, 1]; NaN without rows.
    """
    count, predicted, clicked = calibration_bins(probability, click, n_bins)
    if not len(count):
        return float("nan")
    return float((count * np.abs(predicted - clicked)).sum() / count.sum())


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> Values:
    out = np.full(len(whole), np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out
