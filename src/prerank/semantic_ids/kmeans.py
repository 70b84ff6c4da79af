"""K-means for large codebooks: blocks of GEMM, the same bytes for any number of threads.

scikit-learn's KMeans is the reference in the tests. It is not used here for two reasons:
its centroids depend on the number of threads (partial sums are added in order of arrival),
and its k-means++ costs more than all iterations for codebooks of 1024 codes and more.
Here a block of rows is one task with single-threaded BLAS, and blocks are added in their own
order. Another processor or BLAS may still round the last bit differently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from prerank.artifacts import FloatArray, IntArray

SCORE_BYTES = 1 << 23
"""Size of one block of scores (rows x codes): small enough for the cache, large enough for GEMM."""
SUM_ROWS = 1 << 14
INIT_ROWS_PER_CODE = 32
SAME = 1e-5
"""Squared distance, as a share of the squared norms, below which float32 cannot tell two apart."""


@contextmanager
def workers() -> Iterator[Executor]:
    """Yield a pool with as many threads as BLAS was given, each with single-threaded BLAS."""
    blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    single = {"initializer": threadpool_limits, "initargs": (1,)}
    with threadpool_limits(1), ThreadPoolExecutor(max(blas, default=1), **single) as pool:
        yield pool


def map_blocks(
    pool: Executor, work: Callable[[slice], Any], n_rows: int, block: int
) -> Iterator[Any]:
    """Yield ``work(rows)`` for consecutive blocks of rows, in order."""
    return pool.map(work, (slice(i, min(i + block, n_rows)) for i in range(0, n_rows, block)))


def nearest(
    pool: Executor, points_ND: FloatArray, centroids_KD: FloatArray
) -> tuple[IntArray, FloatArray]:
    """Return each point's nearest centroid (N,) int32 and squared distance (N,) float32.

    Nearest by Euclidean distance: argmax of x.c - |c|^2 / 2. Of equal centroids the first wins.
    """
    half_K = np.einsum("kd,kd->k", centroids_KD, centroids_KD) / 2
    transposed_DK = np.ascontiguousarray(centroids_KD.T)
    labels_N = np.empty(len(points_ND), dtype=np.int32)
    distance_N = np.empty(len(points_ND), dtype=np.float32)

    def work(rows: slice) -> None:
        points_BD = points_ND[rows]
        scores_BK = points_BD @ transposed_DK
        scores_BK -= half_K
        best_B = scores_BK.argmax(axis=1)
        score_B = np.take_along_axis(scores_BK, best_B[:, None], axis=1)[:, 0]
        labels_N[rows] = best_B
        square_B = np.einsum("bd,bd->b", points_BD, points_BD)
        distance_B = square_B - 2 * score_B
        distance_N[rows] = np.where(distance_B > SAME * square_B, distance_B, 0)

    block = max(64, min(4096, SCORE_BYTES // (4 * len(centroids_KD))))
    for _ in map_blocks(pool, work, len(points_ND), block):
        pass
    return labels_N, distance_N


def kmeans(
    pool: Executor,
    points_ND: FloatArray,
    n_codes: int,
    *,
    iterations: int,
    tolerance: float,
    rng: np.random.Generator,
) -> tuple[FloatArray, IntArray]:
    """Return centroids (K, D) float32 and the code of each point (N,) int32.

    Greedy k-means++ on a sample, then Lloyd iterations (Lloyd 1982, doi 10.1109/TIT.1982.1056489);
    a code without points moves to a point far from its own centroid. K is ``n_codes``, or less
    where the points have fewer distinct values: every code returned has a point.
    """
    centroids_KD = points_ND[:0]
    apart = np.arange(len(points_ND))
    while len(apart) and len(centroids_KD) < n_codes:  # again only if the sample had few values
        n_sample = min(len(apart), INIT_ROWS_PER_CODE * n_codes)
        sample = points_ND[np.sort(rng.choice(apart, n_sample, replace=False))]
        more = spread(sample, n_codes - len(centroids_KD), rng)
        centroids_KD = np.concatenate([centroids_KD, more])
        labels_N, distance_N = nearest(pool, points_ND, centroids_KD)
        apart = np.flatnonzero(distance_N)
    error = float(distance_N.sum(dtype=np.float64))
    for _ in range(iterations):
        centroids_KD = _means(pool, points_ND, labels_N, centroids_KD)
        n_moved = _reseed(points_ND, labels_N, distance_N, centroids_KD)
        labels_N, distance_N = nearest(pool, points_ND, centroids_KD)
        before, error = error, float(distance_N.sum(dtype=np.float64))
        if not n_moved and before - error <= tolerance * before:
            break
    used, codes_N = np.unique(labels_N, return_inverse=True)
    return centroids_KD[used], codes_N.astype(np.int32)


def spread(points_ND: FloatArray, n_codes: int, rng: np.random.Generator) -> FloatArray:
    """Return up to ``n_codes`` of the points, (K, D), far from each other: greedy k-means++.

    Each step draws a few points with probability proportional to the squared distance to the
    points chosen, and keeps the one that lowers the sum of distances most (Arthur and
    Vassilvitskii 2007, section 6). It stops early when every point is chosen.
    """
    n_trials = 2 + int(np.log(n_codes))
    square_N = np.einsum("nd,nd->n", points_ND, points_ND)

    def distances(rows_T: NDArray[np.int64]) -> FloatArray:
        norms_TN = square_N[rows_T, None] + square_N
        distance_TN = norms_TN - 2 * (points_ND[rows_T] @ points_ND.T)
        return np.where(distance_TN > SAME * norms_TN, distance_TN, 0)

    chosen = [int(rng.integers(len(points_ND)))]
    nearest_N = distances(np.array(chosen))[0]
    while len(chosen) < n_codes:
        cumulated_N = np.cumsum(nearest_N, dtype=np.float64)
        if cumulated_N[-1] == 0:
            break
        draws_T = np.searchsorted(cumulated_N, rng.random(n_trials) * cumulated_N[-1], "right")
        after_TN = np.minimum(distances(np.minimum(draws_T, len(points_ND) - 1)), nearest_N)
        best = int(after_TN.sum(axis=1, dtype=np.float64).argmin())
        chosen.append(int(draws_T[best]))
        nearest_N = after_TN[best]
        nearest_N[chosen[-1]] = 0
    return points_ND[chosen]


def _means(
    pool: Executor, points_ND: FloatArray, labels_N: IntArray, centroids_KD: FloatArray
) -> FloatArray:
    """Return the mean of each code's points, summed in float64; an empty code stays where it is."""
    n_codes = len(centroids_KD)

    def work(rows: slice) -> NDArray[np.float64]:
        labels_B = labels_N[rows]
        member_BK = sp.csr_matrix(
            (np.ones(len(labels_B)), labels_B, np.arange(len(labels_B) + 1)),
            shape=(len(labels_B), n_codes),
        )
        total: NDArray[np.float64] = member_BK.T @ points_ND[rows].astype(np.float64)
        return total

    sums_KD = np.zeros(centroids_KD.shape)
    for total in map_blocks(pool, work, len(points_ND), SUM_ROWS):
        sums_KD += total
    count_K = np.bincount(labels_N, minlength=n_codes)[:, None]
    means_KD = np.where(count_K > 0, sums_KD / np.maximum(count_K, 1), centroids_KD)
    return means_KD.astype(np.float32)


def _reseed(
    points_ND: FloatArray, labels_N: IntArray, distance_N: FloatArray, centroids_KD: FloatArray
) -> int:
    """Move empty codes, in place, onto the points worst served; return how many moved."""
    count_K = np.bincount(labels_N, minlength=len(centroids_KD))
    empty = np.flatnonzero(count_K == 0)
    if not len(empty):
        return 0
    far = np.argsort(-distance_N, kind="stable")[: len(empty)]
    far = far[distance_N[far] > 0]
    centroids_KD[empty[: len(far)]] = points_ND[far]
    return len(far)
