"""K-means for large codebooks: blocks of GEMM, the same bytes for any number of threads.

scikit-learn's KMeans is the reference in the tests. It is not used here for two reasons:
its centroids depend on the number of threads (partial sums are added in order of arrival),
and for 1024 codes of 128 dimensions its k-means++ takes three times as long, its iterations a
quarter longer (one core). Here a block of rows is one task with single-threaded BLAS, and sums are
made in the order of rows. Another processor or BLAS may still round the last bit differently.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

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
    starts = range(0, len(points_ND), block)
    list(pool.map(work, (slice(start, start + block) for start in starts)))
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
        centroids_KD = means(points_ND, labels_N, centroids_KD)
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
    same_N = SAME * square_N

    def distances(rows_T: NDArray[np.int64]) -> FloatArray:
        # Twice as fast as points_ND[rows_T] @ points_ND.T; rows of N make the rest fast too.
        distance_TN = np.ascontiguousarray((points_ND @ points_ND[rows_T].T).T)
        distance_TN *= -2
        distance_TN += square_N
        distance_TN += square_N[rows_T, None]
        distance_TN[distance_TN <= same_N] = 0
        return distance_TN

    chosen = [int(rng.integers(len(points_ND)))]
    nearest_N = distances(np.array(chosen))[0]
    while len(chosen) < n_codes:
        cumulated_N = np.cumsum(nearest_N, dtype=np.float64)
        if cumulated_N[-1] == 0:
            break
        draws_T = np.searchsorted(cumulated_N, rng.random(n_trials) * cumulated_N[-1], "right")
        draws_T = np.minimum(draws_T, len(points_ND) - 1)
        after_TN = np.minimum(distances(draws_T), nearest_N)
        best = int(after_TN.sum(axis=1, dtype=np.float64).argmin())
        chosen.append(int(draws_T[best]))
        nearest_N = after_TN[best]
        nearest_N[chosen[-1]] = 0
    return points_ND[chosen]


def means(points_ND: FloatArray, labels_N: IntArray, centroids_KD: FloatArray) -> FloatArray:
    """Return the mean of each code's points, summed in float64; an empty code stays where it is.

    In one thread: a tenth of the time of an iteration, and no K x D partial sums to keep.
    """
    n_codes = len(centroids_KD)
    sums_KD = np.zeros(centroids_KD.shape)
    for start in range(0, len(points_ND), SUM_ROWS):
        labels_B = labels_N[start : start + SUM_ROWS]
        member_KB = sp.csc_matrix(
            (np.ones(len(labels_B)), labels_B, np.arange(len(labels_B) + 1)),
            shape=(n_codes, len(labels_B)),
        )
        sums_KD += member_KB @ points_ND[start : start + SUM_ROWS].astype(np.float64)
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
