"""Speed of a bundle in process and over HTTP, beside the physical floor of each.

    python benchmarks/bench_serve.py [--quick] [--json] [--bundles GPL EXPOSED]

In process: one request with 10,000 candidates, for each model, on one thread and on two; its floor
(one thread) is the time to copy the gathered item rows plus the bare matrix product over them.
Over HTTP: `prerank serve` in its own process, load from another one over loopback with a clock of
its own (open loop: a late answer delays no later request, and a request's time runs from when it
was due). Capacity
is what eight connections get without a pause; then twice as many requests a second are sent.
Weights are random: speed does not depend on them. ``--bundles`` compares two trained bundles.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CANDIDATES, HTTP_CANDIDATES, RATE = 10_000, 2000, 100
LIMITS_MS = {"two-tower": 2.0, "cold": 8.0}


# ---- bundles -----------------------------------------------------------------------------------


def make_bundle(out: Path, model: str, seed: int, n_users: int, n_items: int) -> Path:
    """Export an untrained pre-ranker over random users and items."""
    import torch

    from prerank import artifacts as a
    from prerank.ranking.config import TrainConfig
    from prerank.ranking.context import ScoringContext
    from prerank.ranking.model import build_model
    from prerank.ranking.pre_ranker import PreRanker, schema_of
    from prerank.serving.export import Trained, export
    from prerank.vocabulary import Vocabulary

    rng = np.random.default_rng(0)
    i4, i8, f4 = (np.zeros(0, kind) for kind in (np.int32, np.int64, np.float32))
    i1 = np.zeros(0, np.int8)
    past = 50
    user = np.repeat(np.arange(n_users, dtype=np.int32), past)
    item = rng.integers(0, n_items, n_users * past).astype(np.int32)
    names = np.array([str(10**8 + k) for k in range(n_items)], dtype=object)
    kinds = {"category": 200, "brand": 2000}
    goods = a.Features(
        n_items,
        {n: rng.integers(0, size, n_items).astype(np.int32) for n, size in kinds.items()},
        {n: tuple(map(str, range(size))) for n, size in kinds.items()},
        {"price": rng.normal(size=n_items).astype(np.float32)},
    )
    dataset = a.Dataset(
        name="random",
        time_unit="order",
        users=Vocabulary.of([str(10**8 + k) for k in range(n_users)]),
        items=Vocabulary.of(names),
        user_features=a.Features(
            n_users,
            {"city": rng.integers(0, 50, n_users).astype(np.int32)},
            {"city": tuple(map(str, range(50)))},
        ),
        catalog=a.Catalog(names, names, goods),
        exposures=a.Exposures(i8, i4, i4, i8, i1, i4, f4, i1),
        candidates=a.Candidates(i8, i4, i4, i8, i1, f4, f4),
        interactions=a.Interactions(user, item, np.tile(np.arange(past, dtype=np.int64), n_users)),
        pools=a.Pools(np.zeros(0, np.int16), i1, i8, i4, i4, i8, i1),
    )
    vectors = rng.normal(size=(n_items, 64)).astype(np.float32)
    content = a.ItemEmbeddings(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    config = TrainConfig(model=model, min_id_rows=0)
    context = ScoringContext.of(dataset, content, config)
    torch.manual_seed(seed)
    rows = (torch.ones(n_users), torch.ones(n_items))
    ranker = PreRanker(
        build_model(config, context, *rows, click_rate=0.1),
        context,
        config,
        schema_of(dataset, content),
    )
    trained = Trained(out, model, seed, dataset, content, ranker, None, f"random-{seed}")
    return export(trained, out, seconds_per_size=0).path


# ---- in process --------------------------------------------------------------------------------


def times_ms(work: Callable[[], object], n_calls: int) -> NDArray[np.float64]:
    for _ in range(20):
        work()
    taken = np.empty(n_calls)
    for k in range(n_calls):
        start = time.perf_counter()
        work()
        taken[k] = 1000 * (time.perf_counter() - start)
    return taken


def in_process(path: Path, n_calls: int, threads: int) -> dict[str, Any]:
    """Time one request of 10,000 candidates, and its floor on one thread."""
    from prerank.serving.bundle import Bundle
    from prerank.serving.scorer import Scorer
    from prerank.serving.users import Users

    bundle = Bundle.read(path)
    scorer = Scorer(bundle, threads=threads)
    users = Users(bundle, scorer)
    names, rng = bundle.users["id"].to_list(), np.random.default_rng(1)
    drawn = [rng.integers(0, scorer.n_items, CANDIDATES).astype(np.int32) for _ in range(64)]

    def request() -> None:
        scorer.rank(users.state(random.choice(names)), random.choice(drawn), 100)

    taken = times_ms(request, n_calls)
    parts = [np.load(file) for file in sorted((path / "items").glob("*.float32.npy"))]
    gathered = [part.take(drawn[0], axis=0) for part in parts]
    size = sum(part.nbytes for part in gathered)
    wide = max(gathered, key=lambda part: part.nbytes).reshape(CANDIDATES, -1).astype(np.float32)
    hidden = 1 if len(parts) == 2 else 64
    weights = np.ones((wide.shape[1], hidden), np.float32)
    copy = float(np.median(times_ms(lambda: [part.copy() for part in gathered], 100)))
    product = float(np.median(times_ms(lambda: wide @ weights, 100)))
    p50, p95, p99 = np.percentile(taken, (50, 95, 99)).tolist()
    return {
        "candidates": CANDIDATES,
        "threads": threads,
        "calls": n_calls,
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "gathered_mb": size / 1e6,
        "floor_ms": copy + product,
        "floor_copy_ms": copy,
        "floor_product_ms": product,
        "p50_over_floor": p50 / (copy + product),
    }


def compare(gpl: Path, exposed: Path, n_pairs: int) -> dict[str, Any]:
    """Time two bundles in turn; return the paired difference with its 95 % interval."""
    from prerank.serving.bundle import Bundle
    from prerank.serving.scorer import Scorer
    from prerank.serving.users import Users

    rng, calls = np.random.default_rng(2), []
    for path in (gpl, exposed):
        bundle = Bundle.read(path)
        scorer = Scorer(bundle)
        state = Users(bundle, scorer).state(bundle.users["id"][0])
        items = rng.integers(0, scorer.n_items, HTTP_CANDIDATES).astype(np.int32)
        calls.append(lambda scorer=scorer, state=state, items=items: scorer.rank(state, items, 100))
    pairs = np.array([[times_one(call) for call in calls] for _ in range(n_pairs + 20)][20:])
    apart = pairs[:, 0] - pairs[:, 1]
    means = np.median(apart[rng.integers(0, n_pairs, (500, n_pairs))], axis=1)
    low, high = np.percentile(means, (2.5, 97.5)).tolist()
    one, other = np.median(pairs, axis=0).tolist()
    return {
        "gpl_ms": one,
        "exposed_ms": other,
        "difference_ms": [float(np.median(apart)), low, high],
    }


def times_one(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start)


# ---- over HTTP ---------------------------------------------------------------------------------


def request_bytes(path: Path, rng: np.random.Generator) -> list[bytes]:
    """Return HTTP requests of 2,000 candidates as a client would send them."""
    import polars as pl

    users = pl.read_parquet(path / "vocabulary/users.parquet")["id"].to_list()
    items = np.array(pl.read_parquet(path / "vocabulary/items.parquet")["id"].to_list())
    found = []
    for _ in range(50):
        asked = {
            "user": random.choice(users),
            "candidates": items[rng.integers(0, len(items), HTTP_CANDIDATES)].tolist(),
            "top_k": 100,
        }
        body = json.dumps(asked).encode()
        head = f"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        found.append(head.encode() + b"content-type: application/json\r\n\r\n" + body)
    return found


class Load:
    """Sends requests over kept connections and keeps status and milliseconds of each."""

    def __init__(self, port: int, requests: list[bytes]) -> None:
        self.port, self.requests = port, requests
        self.done: list[tuple[int, float]] = []
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def one(self, due: float) -> None:
        """Send a request that was due at ``due`` and note its answer."""
        link = self._free.pop() if self._free else None
        if link is None:
            link = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = link
        writer.write(random.choice(self.requests))
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        self.done.append((int(head.split()[1]), 1000 * (time.perf_counter() - due)))
        self._free.append(link)

    async def open_loop(self, rate: float, seconds: float) -> None:
        """Send ``rate`` requests a second, whatever comes back."""
        tasks, start = [], time.perf_counter()
        for k in range(int(rate * seconds)):
            due = start + k / rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(self.one(due)))
        await asyncio.wait_for(asyncio.gather(*tasks), 30)

    async def closed_loop(self, connections: int, seconds: float) -> None:
        """Keep every connection busy."""
        stop = time.perf_counter() + seconds

        async def client() -> None:
            while (now := time.perf_counter()) < stop:
                await self.one(now)

        await asyncio.gather(*[client() for _ in range(connections)])


def load_process(args: argparse.Namespace) -> None:
    """What the second process does: one kind of load, its summary on stdout."""
    import uvloop

    load = Load(args.port, request_bytes(Path(args.load), np.random.default_rng(3)))
    run = (
        load.open_loop(args.rate, args.seconds) if args.rate else load.closed_loop(8, args.seconds)
    )
    uvloop.run(run)
    accepted = np.array([ms for status, ms in load.done if status == 200])
    p50, p99 = np.percentile(accepted, (50, 99)).tolist() if len(accepted) else (None, None)
    statuses = {str(k): v for k, v in sorted(Counter(s for s, _ in load.done).items())}
    asked = {"asked_per_s": args.rate or None, "sent": len(load.done), "statuses": statuses}
    rate = len(accepted) / args.seconds
    print(json.dumps({**asked, "accepted_per_s": rate, "p50_ms": p50, "p99_ms": p99}))


def memory_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


def over_http(path: Path, seconds: float) -> dict[str, Any]:
    """Serve the bundle and load it three ways."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "prerank", "-q", "serve", str(path), "--port", str(port)]
    server = subprocess.Popen(command, env={**os.environ, "PRERANK_TOKEN": ""})

    def load(rate: float, length: float = seconds) -> dict[str, Any]:
        extra = ["--load", str(path), "--port", str(port), "--rate", str(rate)]
        call = [sys.executable, __file__, *extra, "--seconds", str(length)]
        done = subprocess.run(call, stdout=subprocess.PIPE, text=True, timeout=120, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        load(50, 1)
        steady, capacity = load(RATE), load(0)
        before = memory_mb(server.pid)
        over = load(2 * capacity["accepted_per_s"])
        after = memory_mb(server.pid)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)
    return {
        "candidates": HTTP_CANDIDATES,
        "steady": steady,
        "capacity": capacity,
        "twice_capacity": over,
        "p99_over_capacity_p99": over["p99_ms"] / capacity["p99_ms"],
        "memory_mb": [before, after],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer items, shorter loads")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--bundles", nargs=2, type=Path, help="a GPL and an exposed-only bundle")
    parser.add_argument("--load", default="", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        load_process(args)
        return
    n_users, n_items = (1000, 20_000) if args.quick else (20_000, 200_000)
    with tempfile.TemporaryDirectory() as folder:
        made = {
            model: make_bundle(Path(folder) / model, model, 0, n_users, n_items)
            for model in LIMITS_MS
        }
        result = {
            "users": n_users,
            "items": n_items,
            "in_process": {
                f"{model}, {threads} thread{'s' * (threads > 1)}": in_process(
                    path, 300 if args.quick else 2000, threads
                )
                for model, path in made.items()
                for threads in (1, 2)
            },
            "gpl_against_exposed": compare(*args.bundles, 500 if args.quick else 3000)
            if args.bundles
            else None,
            "http": over_http(made["two-tower"], 3 if args.quick else 15),
        }
    if args.json:
        print(json.dumps(result, indent=1))
        return
    for model, row in result["in_process"].items():
        aim = LIMITS_MS[model.partition(",")[0]]
        print(
            f"{model:<20} {CANDIDATES} candidates in process: p50 {row['p50_ms']:.2f}, "
            f"p99 {row['p99_ms']:.2f} ms (aim {aim:.0f}); floor {row['floor_ms']:.2f} ms = copy "
            f"{row['floor_copy_ms']:.2f} + product {row['floor_product_ms']:.2f}"
        )
    found, http = result["gpl_against_exposed"], result["http"]
    if found is not None:
        value, low, high = found["difference_ms"]
        print(f"GPL - exposed-only, one request: {value:+.4f} ms [{low:+.4f}, {high:+.4f}]")
    for name in ("steady", "capacity", "twice_capacity"):
        print(f"http {name}: {http[name]}")
    print(f"p99 at twice / at capacity: {http['p99_over_capacity_p99']:.2f} (aim 2)")
    print("memory MB before and after the overload: {:.0f}, {:.0f}".format(*http["memory_mb"]))


if __name__ == "__main__":
    main()
