"""The Taobao-MM recipes, end to end: the publisher's demo, and like tables that join."""

import os
from pathlib import Path

import pytest

import taobao_world
from prerank.artifacts import Report
from prerank.pipeline import run_recipe
from prerank.recipe import Recipe, load_recipe
from prerank.store import load

ROOT = Path(__file__).resolve().parents[2]
DEMO = Path(os.environ.get("PRERANK_TEST_DATA", ROOT.parent / "shared" / "data")) / "taobao_mm_demo"


def ran(recipe: Recipe) -> Report:
    run_recipe(recipe)
    report: Report = load(recipe.folder / "report", Report)
    return report


def test_the_ten_row_demo_passes_every_stage(tmp_path: Path) -> None:
    if not DEMO.exists():
        pytest.skip(f"no real data: {DEMO} is absent (PRERANK_TEST_DATA)")
    changes = [f"out={tmp_path}", f"prepare.path={DEMO}", "prepare.taobao_mm.history_length=5"]
    recipe = load_recipe(ROOT / "recipes" / "taobao-mm-demo.toml", changes)
    methods = {record.method for record in ran(recipe).records}
    assert {"exposed-only", "gpl", "gpl-history"} <= methods


def test_the_recipe_finds_the_clusters_of_a_small_world_in_the_published_layout(
    tmp_path: Path,
) -> None:
    (tmp_path / "data").mkdir()
    taobao_world.write(tmp_path / "data")
    changes = [
        f"out={tmp_path}",
        f"prepare.path={tmp_path / 'data'}",
        "workers=1",
        "seeds=[0]",
        "tokenize.codebook_size=16",
        "finetune.hidden_size=16",
        "finetune.n_layers=1",
        "finetune.n_heads=2",
        "evaluate.n_resamples=50",
        "label.proposed_per_user=20",
    ]
    recipe = load_recipe(ROOT / "recipes" / "taobao-mm.toml", changes)
    kept = {name: recipe.methods[name] for name in ("exposed-only", "gpl", "gpl-history")}
    report = ran(recipe.model_copy(update={"methods": kept}))
    auc = {
        record.method: record.value
        for record in report.records
        if (record.pool, record.segment, record.metric) == ("unexposed-uniform", "all", "auc")
    }
    # Histories are of the liked cluster: their cosine must tell liked items from random ones, even
    # though no clicked item of the pool stands in a history itself.
    assert auc["match history"] > 0.7
    assert auc["gpl"] is not None
