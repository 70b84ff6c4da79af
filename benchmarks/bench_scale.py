"""Prepare, match and label a log that is larger than memory; what 300 million users would cost.

    python benchmarks/bench_scale.py --rows 100000000 --json > benchmarks/results/scale.json

Writes a log of its own (`scale_log`) into a temporary folder and runs the stages of a recipe as
`prerank run` does, each in a process of its own: prepare, encode (given vectors), tokenize,
generate (the users' own histories as anchors, so no language model), label. Memory is the resident
size of the process and its children, sampled in /proc, or the process's own high-water mark where
that is higher. --quick takes 300,000 rows in small parts. The floor of prepare, in the same run:
one pass of Polars over the log that reads every column and keeps nothing. 100 million rows need
about 20 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from prerank import memory
from run_recipe import hardware
from scale_log import write_log

STAGES = ("prepare", "encode", "tokenize", "generate", "label")
EVERY_S = 0.1
DIM, ANCHORS = 64, 20
PAPER_USERS, PAPER_ITEMS, PAPER_ROWS = 300e6, 10e6, 1e9
QUICK_ROWS, QUICK_PART_ROWS = 300_000, 80_000


def recipe_of(folder: Path, pairs_per_user: int) -> dict[str, Any]:
    return {
        "name": "scale",
        "out": str(folder / "runs"),
        "seeds": [0],
        "prepare": {"source": "logs", "path": str(folder / "log")},
        "encode": {"encoder": "given"},
        "tokenize": {"n_levels": 2, "codebook_size": 256, "sample_per_code": 64, "iterations": 5},
        "generate": {"n_anchors": ANCHORS, "beam_width": 2 * ANCHORS},
        "label": {"proposed_per_user": pairs_per_user},
        "methods": {"gpl-history": {"anchors": "history"}},
    }


def run_stage(stage: str, recipe: dict[str, Any], part_rows: int) -> float:
    """Run one stage in this process (`--child`); return its seconds without the start."""
    from prerank.data import parted
    from prerank.pipeline import run_recipe
    from prerank.recipe import parse_recipe

    started = time.monotonic()
    if stage == "write":
        counts = recipe["counts"]
        write_log(Path(recipe["prepare"]["path"]), *counts.values(), DIM, 0)
        return time.monotonic() - started
    recipe = {name: value for name, value in recipe.items() if name != "counts"}
    if part_rows:
        parted.is_large = partial(parted.is_large, part_rows=part_rows)
        parted.prepare_parts = partial(parted.prepare_parts, part_rows=part_rows)
    run_recipe(parse_recipe(recipe), [stage])
    return time.monotonic() - started


def children_of(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    found = [int(one) for one in text.split()]
    return found + [more for one in found for more in children_of(one)]


def resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def high_water_bytes(pid: int) -> int:
    """Return the most that a process has held so far; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def measured(command: list[str], folder: Path) -> dict[str, float]:
    """Run a command; return its processor seconds, peak memory and peak of the disk."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak, disk, over = [0], [0], threading.Event()

    def watch() -> None:
        n = 0
        while not over.wait(EVERY_S):
            tree = [child.pid, *children_of(child.pid)]
            now = sum(resident_bytes(pid) for pid in tree)
            peak[0] = max(peak[0], now, high_water_bytes(child.pid))
            if n % 50 == 0:
                with suppress(OSError):  # a file vanished meanwhile
                    disk[0] = max(disk[0], folder_bytes(folder))
            n += 1

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(child.pid, 0)
    over.set()
    watcher.join()
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return {
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(peak[0] / 1e6),
        "disk_gb": round(max(disk[0], folder_bytes(folder)) / 1e9, 2),
    }


def read_seconds(log: Path) -> tuple[float, float]:
    """Return wall and processor seconds of one pass over all columns of the log."""
    started, used = time.monotonic(), time.process_time()
    scan = pl.scan_parquet(sorted((log / "exposures").glob("*.parquet")))
    text = [pl.col(name).str.len_bytes().sum() for name in ("user", "item")]
    rest = [pl.col(name).sum() for name in ("request", "time", "click", "position")]
    scan.select(*text, *rest).collect(engine="streaming")
    return time.monotonic() - started, time.process_time() - used


def bench(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    counts = {"rows": args.rows, "users": args.users, "items": args.items}
    recipe = recipe_of(folder, args.pairs) | {"counts": counts}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    part_rows = QUICK_PART_ROWS if args.quick else 0
    run, keys = folder / "runs" / "scale", {"write": folder / "log", "prepare": "dataset"}
    keys["encode"] = "embeddings"
    keys |= {
        "tokenize": "semantic_ids",
        "generate": "anchors/history",
        "label": "labels/gpl-history",
    }
    stages: dict[str, dict[str, float]] = {}
    for stage in ("write", *STAGES):
        child = [sys.executable, __file__, "--child", stage, str(folder), "--part-rows"]
        command = [*args.prefix.split(), *child, str(part_rows)]
        stages[stage] = found = measured(command, run)
        own = json.loads((folder / f"{stage}.json").read_text())
        found["seconds"] = round(own["seconds"], 2)
        found["peak_mb"] = max(found["peak_mb"], round(own["peak_bytes"] / 1e6))
        found["gb"] = round(folder_bytes(run / keys[stage]) / 1e9, 3)
        if not args.json:
            print(f"{stage:<9} {found}", file=sys.stderr)
    written = stages.pop("write")
    floor = read_seconds(folder / "log")
    dataset = json.loads((run / "dataset" / "dataset.json").read_text())
    bounds = dataset.get("parts", [0, 0])
    counts["parts"], counts["users_seen"] = len(bounds) - 1, bounds[-1]
    labels = json.loads((run / "labels/gpl-history/labels.json").read_text())["fit"]
    anchors = run / "anchors/history/anchors.safetensors"
    from prerank.store import stored_arrays

    counts["anchors"] = stored_arrays(anchors)["point"].shape[0]
    counts["pairs"], counts["held_out_rows"] = labels["n_pairs"], labels["skill"]["n_rows"]
    rates = {
        "prepare_rows_per_s": counts["rows"] / stages["prepare"]["seconds"],
        "generate_anchors_per_s": counts["anchors"] / stages["generate"]["seconds"],
        "label_pairs_per_s": counts["pairs"] / stages["label"]["seconds"],
    }
    return {
        "command": "python benchmarks/bench_scale.py " + " ".join(sys.argv[1:]),
        "hardware": hardware(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "nice": os.nice(0),
        "counts": counts,
        "log": {"gb": written["gb"], "seconds": written["seconds"]},
        "floor": {"seconds": round(floor[0], 2), "cpu_seconds": round(floor[1], 2)},
        "stages": stages,
        "rates": {name: round(value) for name, value in rates.items()},
        "prepare_times_floor": round(stages["prepare"]["cpu_seconds"] / max(floor[1], 1e-9), 1),
        "peak_mb": max(found["peak_mb"] for found in stages.values()),
        "limit_mb": 4000,
        "skill": labels["skill"]["skill"],
        "pseudo_weight_factor": labels["pseudo_weight_factor"],
        "extrapolated": extrapolated(counts, stages),
    }


def extrapolated(counts: dict[str, int], stages: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return hours of this machine and bytes for 300 million users, in proportion to the rows."""
    rows = PAPER_ROWS / counts["rows"]
    pairs = PAPER_USERS / counts["users"]
    return {
        "users": PAPER_USERS,
        "exposures": PAPER_ROWS,
        "pairs": counts["pairs"] * pairs,
        "prepare_cpu_hours": round(stages["prepare"]["cpu_seconds"] * rows / 3600, 2),
        "label_cpu_hours": round(stages["label"]["cpu_seconds"] * pairs / 3600, 2),
        "dataset_gb": round(stages["prepare"]["gb"] * rows, 1),
        "labels_gb": round(stages["label"]["gb"] * pairs, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--users", type=int, default=0, help="default: a twentieth of the rows")
    parser.add_argument("--items", type=int, default=0, help="default: a hundredth of the rows")
    parser.add_argument("--pairs", type=int, default=10, help="unexposed pairs proposed a user")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS:,} rows")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--prefix", default="", help="before each stage's command: taskset -c 0,1")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--part-rows", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        stage, folder = args.child
        recipe = json.loads((Path(folder) / "recipe.json").read_text())
        seconds = run_stage(stage, recipe, args.part_rows)
        own = {"seconds": seconds, "peak_bytes": memory.peak_bytes()}
        (Path(folder) / f"{stage}.json").write_text(json.dumps(own))
        return
    args.rows = QUICK_ROWS if args.quick else args.rows
    args.users = args.users or max(args.rows // 20, 100)
    args.items = args.items or max(args.rows // 100, 1000)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = bench(args, Path(folder))
    if args.json:
        print(json.dumps(found, indent=1))
        return
    for name, value in found["counts"].items():
        print(f"{name:<14} {value:>13,}")
    for stage, one in found["stages"].items():
        print(
            f"{stage:<9} {one['seconds']:>8.1f} s  {one['cpu_seconds']:>8.1f} s of processor  "
            f"{one['peak_mb']:>6} MB at most  {one['gb']:>7.2f} GB written"
        )
    for name, value in found["rates"].items():
        print(f"{name:<24} {value:>12,}")
    print(f"prepare: {found['prepare_times_floor']} x the processor time of reading the log once")
    print(f"300 million users: {found['extrapolated']}")


if __name__ == "__main__":
    main()
