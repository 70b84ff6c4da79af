"""The front page, and the page of one artifact."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from prerank.evaluation import sections
from prerank.evaluation.plots import Plot
from prerank.evaluation.sheets import pool_sheets
from prerank.evaluation.summary import main_pool, summarise
from prerank.inspection.asked import Artifact, Overview
from prerank.inspection.opened import OpenedRun

ABOUT = ("quality.json", "finetune.json", "labels.json", "pre_ranker.json", "dataset.json")


def overview(run: OpenedRun, asked: Overview) -> dict[str, Any]:
    """Return what the run is, what came out, its cascade, its stages."""
    seen = run.seen
    return {
        "folder": str(run.root),
        "name": run.name,
        "evaluated": seen is not None,
        "summary": summarise(seen) if seen else [],
        "notes": list(run.dataset.notes) if "dataset" in run.artifacts else [],
        "sheets": [asdict(one) for one in pool_sheets(seen, main_pool(seen))]
        if seen and seen.pools
        else [],
        "cascade": run.cascade if "dataset" in run.artifacts else None,
        "stages": run.stages,
        "stale": run.stale,
        "cards": [run.extra[key] for key in ("data_card", "model_card") if key in run.extra],
        "recipe": run.recipe,
    }


def overview_plots(run: OpenedRun, data: dict[str, Any]) -> dict[str, list[Plot]]:
    """Return the plots of the front page, those of the report."""
    seen = run.seen
    return {
        "cascade": sections.cascade_plots(data["cascade"]),
        "headline": sections.metric_plots(seen, main_pool(seen)) if seen and seen.pools else [],
        "timing": sections.timing_plots(data["stages"]),
    }


def artifact(run: OpenedRun, asked: Artifact) -> dict[str, Any]:
    """Return the manifest of one artifact and the small JSON files beside it."""
    manifest = run.manifest(asked.key)
    folder = run.store.path(asked.key)
    about = {}
    for name in ABOUT:
        if (folder / name).is_file():
            about[name] = json.loads((folder / name).read_text(encoding="utf-8"))
    children = [key for key, other in run.artifacts.items() if asked.key in other.parents]
    return {
        "key": asked.key,
        "manifest": asdict(manifest),
        "sizes": {
            name: (folder / name).stat().st_size
            for name in manifest.files
            if (folder / name).is_file()
        },
        "children": children,
        "about": about,
    }
