"""Match of pairs with anchors: ours, a loop over users, and the bare matrix product as the floor.

    python benchmarks/bench_match.py [--quick] [--json]

All three do the same dot products in the same run on the same random unit vectors, on one thread.
The floor multiplies matrices that already lie side by side: no gather, no maximum, no argmax.
Seconds are processor seconds, so that ratios hold on a busy machine too.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from prerank.artifacts import InterestAnchors, ItemEmbeddings
from prerank.labels.matching import match_pairs
from timing import best_seconds

REPEATS = 3


def unit_rows(rng: np.random.Generator, n: int, dim: int) -> NDArray[np.float32]:
    values = rng.standard_normal((n, dim), dtype=np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the users")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--users", type=int, default=4000)
    parser.add_argument("--candidates", type=int, default=250, help="mean pairs a user")
    parser.add_argument("--anchors", type=int, default=30)
    parser.add_argument("--dim", type=int, default=96)
    args = parser.parse_args()
    n_users = args.users // 50 if args.quick else args.users

    rng = np.random.default_rng(0)
    count = rng.integers(args.candidates // 2, args.candidates * 3 // 2 + 1, n_users)
    bounds = np.concatenate([[0], np.cumsum(count)])
    n_pairs, n_items, n_anchors = int(bounds[-1]), 7000, args.anchors
    user = np.repeat(np.arange(n_users, dtype=np.int32), count)
    item = rng.integers(0, n_items, n_pairs).astype(np.int32)
    embeddings = ItemEmbeddings(unit_rows(rng, n_items, args.dim))
    n = n_users * n_anchors
    minus = np.full(n, -1, np.float32)
    anchors = InterestAnchors(
        offsets=np.arange(n_users + 1, dtype=np.int64) * n_anchors,
        codes=np.zeros((n, 3), np.int32),
        point=np.arange(n, dtype=np.int32),
        points=unit_rows(rng, n, args.dim),
        logprob=minus,
        logprob_legal=minus,
        source="random",
    )
    gathered = unit_rows(rng, args.candidates, args.dim)
    rest = n_pairs % args.candidates

    def floor() -> None:
        for k in range(n_pairs // args.candidates):
            rows = anchors.points[(k % n_users) * n_anchors : (k % n_users + 1) * n_anchors]
            gathered @ rows.T
        gathered[:rest] @ anchors.points[:n_anchors].T

    def loop() -> NDArray[np.float32]:
        out = np.empty(n_pairs, np.float32)
        for u in range(n_users):
            mine = slice(bounds[u], bounds[u + 1])
            rows = anchors.points[u * n_anchors : (u + 1) * n_anchors]
            cosine = embeddings.vectors[item[mine]] @ rows.T
            out[mine] = np.take_along_axis(cosine, cosine.argmax(axis=1)[:, None], axis=1)[:, 0]
        return out

    def ours() -> NDArray[np.float32]:
        return match_pairs(user, item, embeddings, anchors).relevance

    np.testing.assert_allclose(ours(), loop(), atol=1e-5)
    with threadpool_limits(1):
        taken = {
            "floor": best_seconds(floor, REPEATS, clock=time.process_time),
            "loop over users": best_seconds(loop, REPEATS, clock=time.process_time),
            "prerank": best_seconds(ours, REPEATS, clock=time.process_time),
        }
    rows = [
        {
            "method": name,
            "seconds": round(s, 4),
            "pairs_per_s": round(n_pairs / s),
            "dot_products_per_s": round(n_pairs * n_anchors / s),
            "times_floor": round(s / taken["floor"], 2),
        }
        for name, s in taken.items()
    ]
    if args.json:
        about = {"n_pairs": n_pairs, "n_anchors": n_anchors, "dim": args.dim, "rows": rows}
        print(json.dumps(about, indent=1))
        return
    print(f"{n_pairs} pairs x {n_anchors} anchors x {args.dim} dims, {n_users} users")
    for row in rows:
        print(
            f"{row['method']:<16} {row['seconds']:>8.3f} s  {row['pairs_per_s']:>10} pairs/s  "
            f"{row['dot_products_per_s'] / 1e6:>8.1f} M dots/s  {row['times_floor']:>5} x floor"
        )


if __name__ == "__main__":
    main()
