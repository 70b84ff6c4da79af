"""Time and quality of RQ-KMeans against scikit-learn and against the bare matrix products.

    python benchmarks/bench_tokenize.py [--quick] [--json]
    python benchmarks/bench_tokenize.py --items 1000000 --codebook-size 1024 --threads 2 \\
        --skip-minibatch

Three runs on the same synthetic unit vectors (a hierarchical mixture), all with ``--threads``
threads (1 unless given: ratios then hold on a busy machine too):

ours        fit and tokenize, a fixed number of Lloyd iterations;
minibatch   scikit-learn's MiniBatchKMeans on the residuals, level by level;
gemm        only the matrix products that ours cannot avoid: per level (iterations + 1) passes over
            the sample and one over all items, in blocks, by the same threads. The floor.

``--json`` prints one object on stdout: seconds, mean residual length per level, and ratios
(ours / other, below 1 is better than the other).
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits

from prerank import progress
from prerank.artifacts import FloatArray
from prerank.semantic_ids.config import TokenizeConfig
from prerank.semantic_ids.kmeans import workers
from prerank.semantic_ids.rqkmeans import RqKMeans

T = TypeVar("T")
BLOCK = 2048


def vectors(n_items: int, n_dims: int, seed: int = 0) -> FloatArray:
    """Return (N, D) float32 unit rows: coarse topics of uneven size, finer topics, noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((200, n_dims), dtype=np.float32)
    fine = 0.6 * rng.standard_normal((5000, n_dims), dtype=np.float32)
    share = 1 / np.arange(1, 201)
    topic_N = rng.choice(200, n_items, p=share / share.sum())
    fine_N = (topic_N * 25 + rng.integers(25, size=n_items)) % 5000
    out_ND = 0.5 * rng.standard_normal((n_items, n_dims), dtype=np.float32)
    for start in range(0, n_items, 1 << 16):
        rows = slice(start, start + (1 << 16))
        out_ND[rows] += coarse[topic_N[rows]] + fine[fine_N[rows]]
        out_ND[rows] /= np.linalg.norm(out_ND[rows], axis=1, keepdims=True)
    return out_ND


def timed(work: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def ours(points_ND: FloatArray, config: TokenizeConfig) -> list[float]:
    tokenizer = RqKMeans.fit(points_ND, config, seed=0)
    codes_NL = tokenizer.tokenize(points_ND)
    return residuals(
        points_ND, [c[k] for c, k in zip(tokenizer.codebooks, codes_NL.T, strict=True)]
    )


def residuals(points_ND: FloatArray, parts: list[FloatArray]) -> list[float]:
    """Return the mean residual length after each level, ``parts`` the centroids of the items."""
    left_ND, found = points_ND.copy(), []
    for part_ND in parts:
        left_ND -= part_ND
        found.append(float(np.linalg.norm(left_ND, axis=1).mean()))
    return found


def minibatch(points_ND: FloatArray, config: TokenizeConfig) -> list[float]:
    left_ND, found = points_ND.copy(), []
    for _ in range(config.n_levels):
        model = MiniBatchKMeans(
            config.codebook_size, batch_size=4 * config.codebook_size, n_init=1, random_state=0
        ).fit(left_ND)
        left_ND -= model.cluster_centers_[model.predict(left_ND)]
        found.append(float(np.linalg.norm(left_ND, axis=1).mean()))
    return found


def gemm(points_ND: FloatArray, config: TokenizeConfig) -> None:
    n_sample = min(len(points_ND), config.sample_per_code * config.codebook_size)
    weights_DK = np.ascontiguousarray(points_ND[: config.codebook_size].T)
    passes = [n_sample] * (config.iterations + 1) + [len(points_ND)]

    def work(rows: slice) -> None:
        points_ND[rows] @ weights_DK

    with workers() as pool:
        for n_rows in passes * config.n_levels:
            starts = range(0, n_rows, BLOCK)
            list(pool.map(work, (slice(i, min(i + BLOCK, n_rows)) for i in starts)))


def main() -> None:
    parser = argparse.ArgumentParser(description="time and quality of RQ-KMeans")
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--embedding-dim", type=int, default=128)
    parser.add_argument("--codebook-size", type=int, default=512)
    parser.add_argument("--iterations", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="40,000 x 64 items, 256 codes")
    parser.add_argument("--skip-minibatch", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args()
    if args.quick:
        args.items, args.embedding_dim, args.codebook_size, args.iterations = 40_000, 64, 256, 10
    progress.silence()
    with threadpool_limits(args.threads):
        found = measure(args)
    if args.json:
        print(json.dumps(found))
    else:
        for key, value in found.items():
            print(f"{key:18} {value}")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    config = TokenizeConfig(
        codebook_size=args.codebook_size, iterations=args.iterations, tolerance=0
    )
    points_ND = vectors(args.items, args.embedding_dim)
    floor_s, _ = timed(lambda: gemm(points_ND, config))
    ours_s, ours_residual = timed(lambda: ours(points_ND, config))
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found: dict[str, Any] = {
        "n_items": args.items,
        "embedding_dim": args.embedding_dim,
        "n_levels": config.n_levels,
        "codebook_size": config.codebook_size,
        "iterations": config.iterations,
        "threads": args.threads,
        "seconds": {"ours": ours_s, "gemm": floor_s},
        "items_per_second": args.items / ours_s,
        "residual_norm": {"ours": ours_residual},
        "time_ratio": {"gemm": ours_s / floor_s},
        "peak_mib": peak_mib,
    }
    if not args.skip_minibatch:
        other_s, other_residual = timed(lambda: minibatch(points_ND, config))
        found["seconds"]["minibatch"] = other_s
        found["residual_norm"]["minibatch"] = other_residual
        found["time_ratio"]["minibatch"] = ours_s / other_s
        found["residual_ratio"] = {"minibatch": ours_residual[-1] / other_residual[-1]}
    return found


if __name__ == "__main__":
    main()
