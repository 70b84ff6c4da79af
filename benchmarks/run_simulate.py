"""Run a simulated A/B test, measure it, and keep its figures in benchmarks/results/.

    python benchmarks/run_simulate.py recipes/simulate.toml [--set key=value ...] [--keep]

Writes ``benchmarks/results/simulate-NAME.json``: levels, lifts and click rates by day, the seconds,
the peak memory of the whole process tree (proportional set size, sampled twice a second), hardware
and versions. ``docs/generate.py`` makes the tables of docs/results.md from these files. ``--keep``
goes on with what the run's folder holds; the seconds are then those of the last start only.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import shutil
from pathlib import Path

from prerank.plan import REVISIONS
from prerank.recipe import load_recipe
from prerank.simulation.simulate import KEY, load_result
from run_recipe import RESULTS, hardware, measured

KEPT = (
    "name",
    "shop",
    "arms",
    "references",
    "baseline",
    "n_replications",
    "n_days",
    "interval",
    "metrics",
    "lines",
    "against",
    "before",
    "by_day",
    "notes",
    "recipe",
    "versions",
)
DAILY = ("clicks", "exposures", "tail_clicks")
"""Counts of each arm, replication and day that are kept: what by_day's intervals are made of."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--keep", action="store_true", help="do not delete the run's folder first")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe, arguments.set)
    if not arguments.keep:
        shutil.rmtree(recipe.folder, ignore_errors=True)
    options = [x for text in arguments.set for x in ("--set", text)]
    command = ["prerank", "simulate", str(arguments.recipe), *options]
    seconds, peak_gib = measured(command)
    result = load_result(recipe.folder / KEY)
    kept = {
        **{name: result[name] for name in KEPT},
        "counts": {
            arm: {count: [[day[count] for day in one["days"]] for one in lived] for count in DAILY}
            for arm, lived in result["counts"].items()
        },
        "command": shlex.join(command),
        "hardware": hardware(),
        "python": platform.python_version(),
        "revisions": dict(REVISIONS),
        "whole": not arguments.keep,
        "seconds": round(seconds, 1),
        "peak_gib": peak_gib,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"simulate-{recipe.name}.json"
    path.write_text(json.dumps(kept, indent=0) + "\n")
    print(json.dumps({"kept": str(path), "seconds": seconds, "peak_gib": kept["peak_gib"]}))


if __name__ == "__main__":
    main()
