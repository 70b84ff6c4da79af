"""Run a comparison from nothing, measure it, and keep its figures in benchmarks/results/.

    python benchmarks/run_compare.py recipes/anime-click.toml --methods all --seeds 5 [--trials N]
        [--set key=value ...] [--name NAME] [--keep]

Writes ``benchmarks/results/compare-NAME.json``: what the sheets of docs/results.md need of the
comparison, the seconds, the peak memory of the whole process tree (proportional set size, sampled
twice a second), hardware, versions and the command. ``docs/generate.py`` makes the page from it.
``--keep`` goes on with what the run's folder holds; the seconds its artifacts took then count.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import shutil
from pathlib import Path
from typing import Any

from prerank.plan import REVISIONS
from prerank.recipe import load_recipe
from prerank.store import MANIFEST
from run_recipe import RESULTS, hardware, measured, wall_seconds


def needed(comparison: dict[str, Any]) -> dict[str, Any]:
    """Return what the sheets show: GAUC everywhere, the other main metrics over all items."""
    extra = comparison["extra"]
    about = dict(extra["evaluation"])
    about["tests"] = [test for test in about["tests"] if test["metric"] == "gauc"]
    about["pools"] = {name: {**pool, "reliability": {}} for name, pool in about["pools"].items()}
    size = about["config"]["list_size"]
    main = ("gauc", "auc", f"hr@{max(about['config']['ks'])}", f"ndcg@{size}")
    return {
        "name": comparison["name"],
        "records": [
            record
            for record in comparison["records"]
            if record["metric"] == "gauc"
            or (record["metric"] in main and record["segment"] == "all")
        ],
        "differences": [one for one in comparison["differences"] if one["metric"] == "gauc"],
        "extra": {**extra, "evaluation": about},
    }


def kept_seconds(folder: Path) -> float:
    """Return the time that the finished artifacts of a run's folder took."""
    files = [p for p in folder.rglob(MANIFEST) if ".work" not in p.parts]
    manifests = [json.loads(file.read_text()) for file in files]
    return wall_seconds([(one["created"], float(one["seconds"])) for one in manifests])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--methods", default="")
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--trials", type=int, default=0)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--name", default="", help="of the file; by default that of the recipe")
    parser.add_argument("--keep", action="store_true", help="do not delete the run's folder first")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe, arguments.set)
    if not arguments.keep:
        shutil.rmtree(recipe.folder, ignore_errors=True)
    before = kept_seconds(recipe.folder) if arguments.keep else 0.0
    command = ["prerank", "compare", str(arguments.recipe)]
    command += ["--methods", arguments.methods] if arguments.methods else []
    command += ["--seeds", str(arguments.seeds)] if arguments.seeds else []
    command += ["--trials", str(arguments.trials)] if arguments.trials else []
    command += [x for text in arguments.set for x in ("--set", text)]
    took, peak_gib = measured(command)
    seconds = before + took
    comparison = json.loads((recipe.folder / "comparison" / "comparison.json").read_text())
    kept = {
        "command": shlex.join(command),
        "hardware": hardware(),
        "python": platform.python_version(),
        "revisions": dict(REVISIONS),
        "seconds": round(seconds, 1),
        "peak_gib": peak_gib,
        "seeds": max(record["seeds"] for record in comparison["records"]),
        **needed(comparison),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"compare-{arguments.name or recipe.name}.json"
    path.write_text(json.dumps(kept, indent=0) + "\n")
    print(json.dumps({"kept": str(path), "seconds": seconds, "peak_gib": kept["peak_gib"]}))


if __name__ == "__main__":
    main()
