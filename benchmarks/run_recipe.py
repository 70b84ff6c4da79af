"""Run a recipe from nothing, measure it, and keep its figures in benchmarks/results/.

    python benchmarks/run_recipe.py recipes/games.toml [--set key=value ...] [--headline POOL]

Writes ``benchmarks/results/run-NAME.json``: the records and paired differences of the report, the
seconds of every stage, the peak memory of the whole process tree (proportional set size, sampled
twice a second), hardware and versions. ``docs/generate.py`` makes the pages from these files.
``--keep`` reuses what the run's folder holds instead of starting from nothing; the seconds and the
peak memory of the stages that made it then count as well.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

from prerank.pipeline import Run
from prerank.plan import REVISIONS
from prerank.recipe import load_recipe

RESULTS = Path(__file__).parent / "results"
SAMPLE_S = 0.5


def descendants(pid: int) -> list[int]:
    """Return ``pid`` and all its descendants."""
    found = [pid]
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += descendants(int(child))
    return found


def tree_bytes(pid: int) -> int:
    """Return the proportional set size of ``pid`` and its descendants."""
    total = 0
    try:
        for one in descendants(pid):
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass  # a process ended while we looked
    return total


def measured(command: list[str]) -> tuple[float, float]:
    """Run ``python -m command``; return its seconds and the peak GiB of its process tree.

    Leaves with the command's exit code if that is not 0.
    """
    start, peak = time.monotonic(), 0
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=sys.stderr)
    while process.poll() is None:
        peak = max(peak, tree_bytes(process.pid))
        time.sleep(SAMPLE_S)
    if process.returncode:
        sys.exit(process.returncode)
    return time.monotonic() - start, round(peak / 2**30, 2)


def wall_seconds(stages: list[tuple[str, float]]) -> float:
    """Return how long at least one of the stages was at work: some ran side by side.

    Args:
        stages: when each ended (ISO) and the seconds it took.
    """
    ends = [(datetime.fromisoformat(created).timestamp(), took) for created, took in stages]
    total, until = 0.0, 0.0
    for start, end in sorted((end - took, end) for end, took in ends):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def hardware() -> str:
    """Return the processor's name, its cores in use and the memory."""
    names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{names[0].split(': ')[1]}, {os.cpu_count()} cores, {memory:.0f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--headline", default="", help="pool whose table the README shows")
    parser.add_argument("--keep", action="store_true", help="do not delete the run's folder first")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe, arguments.set)
    if not arguments.keep:
        shutil.rmtree(recipe.folder, ignore_errors=True)
    before = Run(recipe)
    manifests = [
        manifest
        for step in before.steps.values()
        if before.done(step) and (manifest := before.store.manifest(step.key))
    ]
    options = [x for text in arguments.set for x in ("--set", text)]
    command = ["prerank", "run", str(arguments.recipe), *options]
    took, peak_gib = measured(command)
    seconds = took + wall_seconds([(m.created, m.seconds) for m in manifests])
    kept_gib = [manifest.notes.get("peak_bytes", 0) / 2**30 for manifest in manifests]
    peak_gib = max([peak_gib, *(round(gib, 2) for gib in kept_gib)])
    report = json.loads((recipe.folder / "report" / "report.json").read_text())
    manifest = json.loads((recipe.folder / "report" / "manifest.json").read_text())
    kept = {
        "name": recipe.name,
        "command": shlex.join(command),
        "headline_pool": arguments.headline,
        "hardware": hardware(),
        "python": platform.python_version(),
        "packages": manifest["packages"],
        "revisions": dict(REVISIONS),
        "seconds": round(seconds, 1),
        "peak_gib": peak_gib,
        "seeds": len(recipe.seeds),
        "notes": report["extra"].get("notes", []),
        "stages": report["extra"].get("stages", []),
        "records": report["records"],
        "differences": report["differences"],
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"run-{recipe.name}.json"
    path.write_text(json.dumps(kept, indent=0) + "\n")
    print(json.dumps({"kept": str(path), "seconds": seconds, "peak_gib": kept["peak_gib"]}))


if __name__ == "__main__":
    main()
