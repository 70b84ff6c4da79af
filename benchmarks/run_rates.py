"""Measure the rates that `prerank estimate` reckons with; write src/prerank/rates.json.

    python benchmarks/run_rates.py [--json] [--quick]

Every stage of a simulated world of 3,000 users and 3,000 items on one thread, counted in processor
seconds: they hold on a machine that others use too. What costs products (fine-tuning, generating,
tokenizing) is counted in floating-point operations a second, all else in rows a second. --quick
measures a smaller world and writes nothing. What a log in parts reaches is taken from
benchmarks/results/scale.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import torch

from prerank import estimate, progress, store
from prerank.anchors import controls
from prerank.anchors.finetune import finetune
from prerank.anchors.generate import generate
from prerank.artifacts import Dataset
from prerank.data.config import PrepareConfig
from prerank.data.prepare import prepare
from prerank.embeddings.encode import encode
from prerank.evaluation.evaluate import test_rows
from prerank.labels.label import label
from prerank.ranking.pre_ranker import PreRanker
from prerank.ranking.train import train
from prerank.recipe import Recipe, parse_recipe
from prerank.semantic_ids.tokenize import tokenize
from run_recipe import RESULTS, hardware

MODELS = ("two-tower", "three-tower", "int-tower", "cold", "din")


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what ``work`` returns and the processor seconds it took."""
    started = time.process_time()
    done = work()
    return done, time.process_time() - started


def write_logs(world: Dataset, folder: Path) -> PrepareConfig:
    """Write a world as own logs, raw ids and all; return how to read them."""
    folder.mkdir()
    items = {"item": world.items.ids.tolist(), "title": world.catalog.title.tolist()}
    pl.DataFrame(items).write_parquet(folder / "items.parquet")
    tables = {
        "exposures": ("request", "time", "click", "position", "propensity"),
        "candidates": ("request", "time"),
        "interactions": ("time",),
    }
    for name, columns in tables.items():
        rows = getattr(world, name)
        named = {"user": world.users.ids[rows.user], "item": world.items.ids[rows.item]}
        frame = pl.DataFrame(named | {column: getattr(rows, column) for column in columns})
        known = pl.col("click").replace(-1, None) if "click" in columns else []
        frame.with_columns(known).fill_nan(None).write_parquet(folder / f"{name}.parquet")
    logs = {"time_unit": "ms", "items": {"text": ["title"]}}
    return PrepareConfig.parse({"source": "logs", "path": str(folder), "logs": logs})


def measure(recipe: Recipe, folder: Path) -> dict[str, float]:
    """Return name -> rate, one thread."""
    world = prepare(recipe.prepare, 0)
    logs = write_logs(world, folder / "logs")
    dataset, seconds = timed(lambda: prepare(logs, 0))
    (folder / "dataset").mkdir()
    _, write_s = timed(lambda: store.save(folder / "dataset", dataset))
    dataset, read_s = timed(lambda: store.load(folder / "dataset", type(dataset)))
    counts = estimate.counts_of_dataset(folder / "dataset")
    written = sum(f.stat().st_size for f in (folder / "dataset").glob("*.parquet"))
    rates = {
        "prepare_rows_per_second": counts.rows / (seconds + write_s),
        "load_rows_per_second": counts.rows / read_s,
        "dataset_bytes_per_row": written / counts.rows,
    }
    space, seconds = timed(lambda: encode(dataset, recipe.encode, 0))
    rates["lsa_items_per_second"] = counts.items / seconds
    sids, seconds = timed(lambda: tokenize(space, recipe.tokenize, 0, items=dataset.items))
    dim, n_levels = space.vectors.shape[1], recipe.tokenize.n_levels
    rates["tokenize_flops"] = estimate.tokenize_flops(recipe.tokenize, counts.items, dim) / seconds

    model, work = folder / "model", folder / "work"
    model.mkdir()
    work.mkdir()
    _, seconds = timed(lambda: finetune(dataset, sids, recipe.finetune, 0, model, work))
    rates["finetune_flops"] = estimate.finetune_flops(recipe.finetune, n_levels, counts) / seconds
    anchors, seconds = timed(
        lambda: generate(dataset, sids, space, model, recipe.generate, 0, work)
    )
    decoder = estimate.decoder_of(recipe.finetune)
    each = estimate.user_flops(recipe.generate, decoder, n_levels, counts.history)
    rates["generate_flops"] = counts.users * each / seconds
    n_anchors = recipe.generate.n_anchors
    _, seconds = timed(lambda: controls.history_anchors(dataset, sids, space, n_anchors, 0))
    rates["control_anchors_per_second"] = counts.users * n_anchors / seconds

    labels, seconds = timed(lambda: label(dataset, space, anchors, recipe.label, 0))
    rates["label_pairs_per_second"] = len(labels) / seconds
    rates["label_dim"], rates["label_anchors"] = dim, len(anchors.codes) / counts.users
    plain = recipe.label.model_copy(update={"source": "negatives"})
    _, seconds = timed(lambda: label(dataset, space, None, plain, 0))
    rates["plain_label_pairs_per_second"] = len(labels) / seconds
    pools = dataset.pools.take(test_rows(dataset))
    ranker: PreRanker | None = None
    for name in MODELS:
        config = recipe.train.model_copy(update={"model": name, "epochs": 2, "patience": 0})
        made, seconds = timed(partial(train, dataset, space, labels, config, 0))
        rows = 2 * estimate.train_rows(recipe, counts) * (1 + config.unexposed_ratio)
        rates[f"train_{name}_rows_per_second"] = rows / seconds
        ranker = ranker or made
    assert ranker is not None
    _, seconds = timed(lambda: ranker.score_pools(pools))
    rates["score_rows_per_second"] = len(pools) / seconds
    return rates


def rates_of_parts() -> dict[str, float]:
    """Return the rates of a log in parts, as benchmarks/bench_scale.py measured them."""
    found = json.loads((RESULTS / "scale.json").read_text())
    counts, stages = found["counts"], found["stages"]
    return {
        "prepare_parts_rows_per_second": counts["rows"] / stages["prepare"]["cpu_seconds"],
        "label_parts_pairs_per_second": counts["pairs"] / stages["label"]["cpu_seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    torch.set_num_threads(1)
    progress.silence()
    size = 600 if options.quick else 3000
    recipe = parse_recipe(
        {
            "prepare": {"world": {"n_users": size, "n_items": size}},
            "finetune": {"epochs": 1 if options.quick else 2},
            "tokenize": {"codebook_size": 64},
            "generate": {"n_anchors": 30, "beam_width": 40},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        rates = measure(recipe, Path(folder)) | rates_of_parts()
    values = {
        "command": "python benchmarks/run_rates.py",
        "hardware": hardware(),
        "threads": 1,
        "clock": "processor seconds",
        "world": asdict(estimate.counts_of_world(recipe.prepare.world)),
        "versions": store.versions(),
        "rates": {name: float(f"{value:.4g}") for name, value in rates.items()},
    }
    if not options.quick:
        estimate.RATES.write_text(json.dumps(values, indent=1) + "\n")
    if options.json:
        print(json.dumps(values))
        return
    for name, value in values["rates"].items():
        print(f"{name:36s} {value:14,.1f}")


if __name__ == "__main__":
    main()
