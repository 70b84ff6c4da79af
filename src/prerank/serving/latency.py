"""How long scoring takes in process, by number of candidates."""

from __future__ import annotations

import platform
import time
from typing import Any

import numpy as np

from prerank import seeds
from prerank.serving.bundle import Bundle, Precision
from prerank.serving.scorer import Scorer
from prerank.serving.users import Users

SIZES = (100, 1000, 2000, 5000, 10_000)
TOP_K = 100
WARM_UP, LEAST_CALLS, MOST_CALLS = 10, 50, 2000


def measure(
    bundle: Bundle,
    seconds_per_size: float,
    *,
    precision: Precision = "float32",
    threads: int = 1,
) -> dict[str, Any]:
    """Return p50, p95 and p99 in milliseconds of one request at each of `SIZES`.

    One request is: user tower, gather of the candidates' rows, scorer, the best 100. Users and
    candidates are new in every call, drawn with replacement.
    """
    scorer = Scorer(bundle, precision, threads)
    users = Users(bundle, scorer)
    rng = seeds.rng(0, "export", "latency")
    ids = bundle.users["id"].to_list()
    found: dict[str, Any] = {
        "threads": threads,
        "precision": precision,
        "top_k": TOP_K,
        "machine": platform.processor() or platform.machine(),
        "candidates": {},
    }
    for size in SIZES:
        taken: list[float] = []
        stop = time.monotonic() + seconds_per_size
        while len(taken) < WARM_UP + LEAST_CALLS or (
            time.monotonic() < stop and len(taken) < MOST_CALLS
        ):
            state = users.state(ids[rng.integers(len(ids))])
            items = rng.integers(0, scorer.n_items, size).astype(np.int32)
            start = time.perf_counter()
            scorer.rank(state, items, TOP_K)
            taken.append(1000 * (time.perf_counter() - start))
        kept = taken[WARM_UP:]
        p50, p95, p99 = np.percentile(kept, (50, 95, 99)).round(4).tolist()
        found["candidates"][str(size)] = {"p50": p50, "p95": p95, "p99": p99, "calls": len(kept)}
    return found
