"""Evaluation: GAUC of ours against scikit-learn user by user, and one whole report.

    python benchmarks/bench_evaluate.py [--quick] [--json]

The pool has the shape of the anime click funnel's: 3,437 users with 240 candidates each. Both
sides of the GAUC compute the same number from the same rows in the same run (checked). The report
is all of `evaluate`: every metric, four segments, 1,000 draws of users and seeds, differences.
Seconds are processor seconds, so that they hold on a busy machine too.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from prerank import artifacts as a
from prerank import progress
from prerank.evaluation import metrics
from prerank.evaluation.config import EvaluateConfig
from prerank.evaluation.evaluate import evaluate
from prerank.vocabulary import Vocabulary
from timing import best_seconds

REPEATS = 3
CANDIDATES, N_ITEMS, N_EXPOSURES, DIM = 240, 7000, 200_000, 96


def world(n_users: int, rng: np.random.Generator) -> tuple[a.Dataset, NDArray[np.float32]]:
    """Return a dataset with one pool, and a score that half sees the truth."""
    popularity = rng.pareto(1.0, N_ITEMS) + 0.1
    share = popularity / popularity.sum()
    user = np.repeat(np.arange(n_users, dtype=np.int32), CANDIDATES)
    item = rng.choice(N_ITEMS, len(user), p=share).astype(np.int32)
    truth = rng.normal(size=len(user)) + 0.5 * np.log(popularity[item])
    click = (truth + rng.normal(size=len(user)) > 1.7).astype(np.int8)
    shown = rng.choice(N_ITEMS, N_EXPOSURES, p=share).astype(np.int32)
    n, m = len(user), len(shown)
    none32, none64 = np.zeros(0, np.int32), np.zeros(0, np.int64)
    none8, none_f = np.zeros(0, np.int8), np.zeros(0, np.float32)
    titles = np.full(N_ITEMS, "item", dtype=object)
    dataset = a.Dataset(
        name="bench",
        time_unit="none",
        users=Vocabulary.of(range(n_users)),
        items=Vocabulary.of(range(N_ITEMS)),
        user_features=a.Features(n_users),
        catalog=a.Catalog(titles, titles, a.Features(N_ITEMS)),
        exposures=a.Exposures(
            request=np.zeros(m, np.int64),
            user=np.zeros(m, np.int32),
            item=shown,
            time=np.zeros(m, np.int64),
            click=np.zeros(m, np.int8),
            position=np.full(m, -1, np.int32),
            propensity=np.full(m, np.nan, np.float32),
            split=np.zeros(m, np.int8),
        ),
        candidates=a.Candidates(none64, none32, none32, none64, none8, none_f, none_f),
        interactions=a.Interactions(none32, none32, none64),
        pools=a.Pools(
            pool=np.zeros(n, np.int16),
            split=np.full(n, a.TEST, np.int8),
            request=user.astype(np.int64),
            user=user,
            item=item,
            time=np.zeros(n, np.int64),
            click=click,
        ),
    )
    return dataset, truth.astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the users, 2 x 2 scores")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--users", type=int, default=3437)
    parser.add_argument("--methods", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    n_users = args.users // 10 if args.quick else args.users
    n_methods, n_seeds = (2, 2) if args.quick else (args.methods, args.seeds)
    progress.silence()

    rng = np.random.default_rng(0)
    dataset, truth = world(n_users, rng)
    pools = dataset.pools
    score = truth + rng.standard_normal(len(truth), dtype=np.float32)

    def ours() -> float:
        rows = metrics.sort_rows(score, pools.user)
        found = metrics.user_auc(pools.user, pools.click, score, rows, n_users)
        return float(np.nanmean(found))

    def sklearn_loop() -> float:
        found = []
        for start in range(0, len(score), CANDIDATES):
            click = pools.click[start : start + CANDIDATES]
            if click.min() != click.max():
                found.append(roc_auc_score(click, score[start : start + CANDIDATES]))
        return float(np.mean(found))

    gap = abs(ours() - sklearn_loop())
    if gap > 1e-12:
        raise SystemExit(f"the two GAUC differ by {gap}")
    loop_s = best_seconds(sklearn_loop, 1, warm_up=0, clock=time.process_time)
    ours_s = best_seconds(ours, REPEATS, warm_up=0, clock=time.process_time)

    vectors = rng.standard_normal((N_ITEMS, DIM), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = {
        "exposed-only" if k == 0 else f"method-{k}": (
            truth + (k + 1) / 5 * rng.standard_normal((n_seeds, len(truth)), dtype=np.float32)
        )
        for k in range(n_methods)
    }
    start_wall, start_cpu = time.perf_counter(), time.process_time()
    report = evaluate(dataset, a.ItemEmbeddings(vectors), scores, EvaluateConfig(), 0)
    result = {
        "rows": len(pools),
        "users": n_users,
        "gauc_sklearn_loop_s": round(loop_s, 4),
        "gauc_ours_s": round(ours_s, 4),
        "gauc_ratio": round(loop_s / ours_s, 1),
        "report_methods": n_methods,
        "report_seeds": n_seeds,
        "report_numbers": len(report.records) + len(report.differences),
        "report_cpu_s": round(time.process_time() - start_cpu, 2),
        "report_wall_s": round(time.perf_counter() - start_wall, 2),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }
    if args.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:22s} {value:>12,}")


if __name__ == "__main__":
    main()
