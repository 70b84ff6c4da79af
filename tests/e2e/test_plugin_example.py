"""The example package: its own tests pass, its recipe runs, and stranger's code is not trusted."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prerank.artifacts import ItemEmbeddings, PseudoLabels, Report
from prerank.errors import ConfigError
from prerank.pipeline import Run, run_recipe
from prerank.plan import plan
from prerank.ranking.pre_ranker import PreRanker
from prerank.recipe import Recipe, load_recipe

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "plugin"
SMALL = (
    "prepare.world.n_users=60",
    "prepare.world.n_items=80",
    "train.epochs=1",
    "evaluate.n_resamples=20",
)


def test_its_own_tests_pass() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=EXAMPLE, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recipe]:
    monkeypatch.syspath_prepend(str(EXAMPLE / "src"))
    yield load_recipe(EXAMPLE / "recipe.toml", [*SMALL, f"out='{tmp_path}'"])
    for name in [name for name in sys.modules if name.startswith("prerank_example")]:
        del sys.modules[name]


def test_its_recipe_runs(recipe: Recipe) -> None:
    run_recipe(recipe)
    run = Run(recipe)
    assert run.load("embeddings", ItemEmbeddings).vectors.shape == (80, 64)
    labels = run.load("labels/item-rate", PseudoLabels)
    assert labels.source == "prerank_example.labels:label" and len(labels)
    report = run.load("report", Report)
    assert {"item-rate", "exposed-only"} <= {record.method for record in report.records}

    folder = run.path("rankers/item-rate/seed0")
    with pytest.raises(ConfigError, match="trust_plugins"):
        PreRanker.from_pretrained(folder, run.dataset, run.space)
    ranker = PreRanker.from_pretrained(folder, run.dataset, run.space, trust_plugins=True)
    assert type(ranker.model).__name__ == "Linear"


def test_its_source_enters_the_fingerprints(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {step.key: step for step in plan(recipe)}
    assert "prerank_example.encoder:encode" in before["embeddings"].parents
    monkeypatch.setattr("prerank.plugins.mark", lambda path, where: f"changed {path}")
    after = {step.key: step.fingerprint for step in plan(recipe)}
    changed = {key for key, step in before.items() if after[key] != step.fingerprint}
    assert changed == {*before} - {"dataset"}
