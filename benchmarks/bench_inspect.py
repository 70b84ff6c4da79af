"""How long the inspector's pages take on a run of 100,000 users and 1,000,000 items.

The run is generated: random content, codes, anchors, labels and two untrained pre-rankers, laid out
as the pipeline does. Each page is asked for over the app, in process, the first time and again;
then all labels are downloaded as CSV. Memory is the largest resident size, mapped files included.
The floor beside them is what an exact nearest-neighbour page cannot go below: one pass over the
item vectors.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prerank import artifacts as a
from prerank import progress
from prerank import store as stores
from prerank.evaluation.explain import describe_labels
from prerank.evaluation.overview import catalog_map, describe_cascade
from prerank.memory import peak_bytes, reset_peak
from prerank.store import Manifest, Store
from prerank.vocabulary import Vocabulary

DIM, LEVELS, ANCHORS, PAST, SHOWN, RECALLED = 64, 3, 20, 15, 20, 50
LIMIT_MS = 500


def make_run(folder: Path, n_users: int, n_items: int, codebook_size: int) -> Path:
    """Write the run."""
    rng = np.random.default_rng(0)
    store = Store(folder)
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text('name = "large"\n[evaluate]\nmethod = "gpl"\n')
    data = make_dataset(rng, n_users, n_items)
    vectors = rng.standard_normal((n_items, DIM), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    space = a.ItemEmbeddings(vectors)
    codes = rng.integers(0, codebook_size, (n_items, LEVELS)).astype(np.int32)
    sids = a.SemanticIds(
        codes,
        np.full(LEVELS, codebook_size, np.int32),
        np.zeros((LEVELS * codebook_size, DIM), np.float32),
        {"n_items": n_items, "codebook_sizes": [codebook_size] * LEVELS}
        | {"codes_used": [codebook_size] * LEVELS, "perplexity": [codebook_size * 0.9] * LEVELS},
    )
    anchors = make_anchors(rng, n_users, space, codes)
    labels = make_labels(rng, data)
    report = a.Report(
        tuple(
            a.Record(name, "unexposed", "all", "gauc", 0.6, 0.59, 0.61, n_users, 1)
            for name in ("gpl", "exposed-only")
        ),
        extra={
            "cascade": describe_cascade(data),
            "map": catalog_map(space, sids, data.items, data.catalog.title, 0),
            "labels": {"gpl": describe_labels(labels, data)},
        },
    )
    parents = {"dataset": "d", "embeddings": "e"}
    for key, kind, mark, made_from, artifact in (
        ("dataset", "prepare", "d", {}, data),
        ("embeddings", "encode", "e", {"dataset": "d"}, space),
        ("semantic_ids", "tokenize", "s", parents, sids),
        ("anchors/llm", "generate", "a", {**parents, "semantic_ids": "s"}, anchors),
        ("labels/gpl", "label", "l", {**parents, "anchors/llm": "a"}, labels),
        ("report", "evaluate", "r", parents, report),
    ):
        manifest = Manifest(kind, mark, {"source": "gpl"}, 0, made_from)
        with store.publish(key, manifest) as out:
            stores.save(out, artifact)
    for name, more in (("gpl", {"labels/gpl": "l"}), ("exposed-only", {})):
        manifest = Manifest("train", f"t-{name}", {}, 0, {**parents, **more})
        with store.publish(f"rankers/{name}/seed0", manifest) as out:
            make_ranker(data, space, len(name)).save(out)
    return folder


def make_dataset(rng: np.random.Generator, n_users: int, n_items: int) -> a.Dataset:
    def drawn(n: int) -> a.IntArray:
        return np.minimum((rng.random(n) ** 3 * n_items).astype(np.int32), n_items - 1)

    def owners(each: int) -> a.IntArray:
        return np.repeat(np.arange(n_users, dtype=np.int32), each)

    past, shown, recalled = n_users * PAST, n_users * SHOWN, n_users * RECALLED
    words = np.array(["red", "warm", "light", "old", "small", "shoe", "lamp", "coat", "chair"])
    picked = words[rng.integers(0, len(words), (n_items, 3))]
    titles = np.array([f"{x} {y} {z} {k}" for k, (x, y, z) in enumerate(picked)], dtype=object)
    return a.Dataset(
        name="large",
        time_unit="ms",
        users=Vocabulary.of([f"u{k:07d}" for k in range(n_users)]),
        items=Vocabulary.of([f"i{k:07d}" for k in range(n_items)]),
        user_features=a.Features(n_users),
        catalog=a.Catalog(titles, titles, a.Features(n_items)),
        exposures=a.Exposures(
            request=owners(SHOWN).astype(np.int64),
            user=owners(SHOWN),
            item=drawn(shown),
            time=np.full(shown, 2_000_000, np.int64),
            click=rng.integers(0, 2, shown).astype(np.int8),
            position=np.full(shown, -1, np.int32),
            propensity=np.full(shown, np.nan, np.float32),
            split=np.zeros(shown, np.int8),
        ),
        candidates=a.Candidates(
            request=owners(RECALLED).astype(np.int64),
            user=owners(RECALLED),
            item=drawn(recalled),
            time=np.full(recalled, 2_000_000, np.int64),
            stage=np.zeros(recalled, np.int8),
            score=np.full(recalled, np.nan, np.float32),
            truth=rng.random(recalled, dtype=np.float32),
        ),
        interactions=a.Interactions(
            owners(PAST), drawn(past), np.tile(np.arange(PAST, dtype=np.int64), n_users) * 1000
        ),
        pools=a.Pools(
            pool=np.zeros(n_users, np.int16),
            split=np.full(n_users, a.TEST, np.int8),
            request=np.arange(n_users, dtype=np.int64),
            user=owners(1),
            item=drawn(n_users),
            time=np.full(n_users, 3_000_000, np.int64),
            click=rng.integers(0, 2, n_users).astype(np.int8),
            pools=("unexposed",),
        ),
    )


def make_anchors(
    rng: np.random.Generator, n_users: int, space: a.ItemEmbeddings, codes: a.IntArray
) -> a.InterestAnchors:
    item = rng.integers(0, len(codes), n_users * ANCHORS).astype(np.int32)
    logprob = -rng.exponential(3, len(item)).astype(np.float32)
    offsets = np.arange(n_users + 1, dtype=np.int64) * ANCHORS
    return a.InterestAnchors(offsets, codes[item], item, space.vectors, logprob, logprob, "llm")


def make_labels(rng: np.random.Generator, data: a.Dataset) -> a.PseudoLabels:
    rows = data.candidates
    keys = np.unique(rows.user.astype(np.int64) << 32 | rows.item)
    user, item = (keys >> 32).astype(np.int32), (keys & 0xFFFFFFFF).astype(np.int32)

    def drawn() -> a.FloatArray:
        return rng.random(len(keys), dtype=np.float32)

    anchor = user.astype(np.int64) * ANCHORS + rng.integers(0, ANCHORS, len(keys))
    return a.PseudoLabels(
        user=user,
        item=item,
        time=np.full(len(keys), 2_000_000, np.int64),
        label=drawn(),
        confidence=drawn() + 0.01,
        relevance=drawn(),
        anchor=anchor,
        dispersion=drawn(),
        history=drawn(),
        llm=drawn(),
        source="gpl",
    )


def make_ranker(data: a.Dataset, space: a.ItemEmbeddings, seed: int) -> Any:
    """Return an untrained two-tower; its speed is that of a trained one."""
    from prerank.ranking.config import TrainConfig
    from prerank.ranking.context import ScoringContext
    from prerank.ranking.model import build_model
    from prerank.ranking.pre_ranker import PreRanker, schema_of

    config = TrainConfig(min_id_rows=1, embedding_dim=16, hidden=(32,))
    context = ScoringContext.of(data, space, config)
    torch.manual_seed(seed)
    rows = (torch.ones(len(data.users)), torch.ones(len(data.items)))
    model = build_model(config, context, *rows, click_rate=0.1)
    return PreRanker(model, context, config, schema_of(data, space))


def measure(folder: Path, repeats: int) -> dict[str, Any]:
    """Open the run as the command does and time each page."""
    from starlette.testclient import TestClient

    from prerank.inspection.app import create_app, warm_pages
    from prerank.inspection.asked import Download
    from prerank.inspection.labels import file_rows, write_rows
    from prerank.inspection.opened import OpenedRun

    started = time.perf_counter()
    run = OpenedRun(folder)
    run.warm()
    app = create_app([run])
    warm_pages(app)
    opened = time.perf_counter() - started
    resident = {"open": peak_bytes()}
    reset_peak()
    client = TestClient(app, base_url="http://localhost")
    n = len(run.dataset.users)
    users = [str(run.dataset.users.ids[k]) for k in np.linspace(0, n - 1, repeats + 1).astype(int)]
    items = [str(run.dataset.items.ids[k]) for k in range(7, 7 + repeats + 1)]
    pages: dict[str, list[str]] = {
        "overview": ["/"],
        "users": ["/users"],
        "users, search": [f"/users?q={user[:5]}" for user in users],
        "users, other pair": ["/users?left=exposed-only&right=gpl"],
        "user": [f"/user?id={user}" for user in users],
        "items": ["/items"],
        "items, search": ["/items?q=warm+lamp"],
        "item": [f"/item?id={item}" for item in items],
        "tree": ["/sids"],
        "tree, level 2": ["/sids?prefix=5"],
        "labels": ["/labels"],
        "labels, filtered": ["/labels?label_min=0.9&confidence_min=0.5"],
        "labels, title": ["/labels?title=warm+lamp"],
        "labels, popularity": ["/labels?popularity=5&confidence=5"],
        "labels, sorted": ["/labels?sort=label"],
        "labels, all of it": ["/labels?title=warm&label_min=0.5&confidence=5&sort=relevance"],
        "compare": ["/compare"],
        "artifact": ["/artifact?key=labels/gpl"],
    }
    found = {}
    for name, urls in pages.items():
        times = []
        for k in range(repeats + 1):
            begin = time.perf_counter()
            answer = client.get(urls[k % len(urls)])
            times.append(1000 * (time.perf_counter() - begin))
            assert answer.status_code == 200, (urls[k % len(urls)], answer.text[:500])
        found[name] = {"first_ms": times[0], "again_ms": float(np.median(times[1:]))}
    resident["pages"] = peak_bytes()
    reset_peak()
    begin = time.perf_counter()
    everything = Download()
    with tempfile.TemporaryDirectory() as folder_:
        write_rows(file_rows(run, everything), everything, Path(folder_) / "labels.csv")
    download = time.perf_counter() - begin
    resident["download"] = peak_bytes()
    vectors = np.ascontiguousarray(run.space().vectors)
    ask = vectors[:1].copy()
    floor = []
    for _ in range(5):
        begin = time.perf_counter()
        _ = ask @ vectors.T
        floor.append(1000 * (time.perf_counter() - begin))
    slowest = max(found, key=lambda name: found[name]["first_ms"])
    return {
        "users": n,
        "items": len(run.dataset.items),
        "labels": int(run.labels("gpl").count.sum()),
        "open_s": opened,
        "pages": found,
        "slowest_first": slowest,
        "slowest_first_ms": found[slowest]["first_ms"],
        "slowest_over_limit": found[slowest]["first_ms"] / LIMIT_MS,
        "download_s": download,
        "peak_gb": {name: round(size / 1e9, 2) for name, size in resident.items()},
        "vector_pass_ms": min(floor),
        "item_over_vector_pass": found["item"]["again_ms"] / min(floor),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2,000 users and 20,000 items")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--keep", type=Path, help="keep the generated run here, or use the one there"
    )
    args = parser.parse_args()
    progress.silence()
    sizes = (2_000, 20_000, 64) if args.quick else (100_000, 1_000_000, 256)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary) / "large"
        if not (folder / "rankers" / "exposed-only").is_dir():
            # In a process of its own, so that its memory is not counted.
            maker = multiprocessing.get_context("spawn").Process(
                target=make_run, args=(folder, *sizes)
            )
            maker.start()
            maker.join()
        result = measure(folder, 2 if args.quick else 5)
    if args.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{result['users']:,} users, {result['items']:,} items, {result['labels']:,} labels")
    print(f"opened in {result['open_s']:.1f} s")
    for name, row in result["pages"].items():
        print(f"{name:<18} first {row['first_ms']:7.1f} ms, again {row['again_ms']:7.1f} ms")
    sizes = ", ".join(f"{name} {size:.2f} GB" for name, size in result["peak_gb"].items())
    print(f"all labels as CSV in {result['download_s']:.1f} s; peak memory: {sizes}")
    print(
        f"slowest first page: {result['slowest_first']}, {result['slowest_first_ms']:.0f} ms "
        f"(aim {LIMIT_MS}); an item's page takes {result['item_over_vector_pass']:.1f} passes over "
        f"the vectors ({result['vector_pass_ms']:.1f} ms)"
    )


if __name__ == "__main__":
    main()
