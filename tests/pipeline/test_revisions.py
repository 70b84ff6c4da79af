"""Code that makes other things of equal settings has a revision, and what is older is made anew."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from prerank import plan as planned
from prerank.pipeline import VERBS, Run, run_recipe
from prerank.recipe import Recipe, load_recipe
from prerank.store import Store
from prerank.verify import verify

RECIPE = """
name = "tiny"
seeds = [0]
[prepare]
source = "world"
world.n_users = 60
world.n_items = 80
world.n_days = 6
[methods.exposed-only]
label.source = "none"
[methods.gpl]
anchors = "history"
"""


def marks(recipe: Recipe) -> Mapping[str, str]:
    return {step.key: step.fingerprint for step in planned.plan(recipe)}


def test_every_revision_is_of_a_stage() -> None:
    assert planned.REVISIONS.keys() <= VERBS.keys()


def test_a_stage_of_another_revision_is_made_anew_with_all_that_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    recipe = load_recipe(path, [f"out={tmp_path / 'runs'}"])
    run_recipe(recipe)
    before, made = marks(recipe), Store(recipe.folder).manifest("labels/gpl")
    assert made is not None and made.revision == planned.REVISIONS["label"]
    monkeypatch.setitem(planned.REVISIONS, "label", made.revision + 1)  # type: ignore[arg-type]
    changed = {key for key, mark in marks(recipe).items() if mark != before[key]}
    assert changed == {"labels/gpl", "rankers/gpl/seed0", "report"}
    stale = {key for key, step in Run(recipe).steps.items() if not Run(recipe).done(step)}
    assert stale == changed
    assert {one.state for one in verify(recipe.folder, n_users=0)} == {"sound"}  # old, not damaged
    run_recipe(recipe)
    again = Store(recipe.folder).manifest("labels/gpl")
    assert again is not None and again.revision == made.revision + 1
