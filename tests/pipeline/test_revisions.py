"""Code that makes other things of equal settings has a revision, and what is older is made anew."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from chaos.small import small_recipe
from prerank import plan as planned
from prerank.pipeline import VERBS, Run, run_recipe
from prerank.recipe import Recipe
from prerank.store import Store
from prerank.verify import verify


def marks(recipe: Recipe) -> Mapping[str, str]:
    return {step.key: step.fingerprint for step in planned.plan(recipe)}


def test_every_revision_is_of_a_stage_or_of_the_simulation() -> None:
    assert planned.REVISIONS.keys() <= {*VERBS, "simulate"}


def test_a_stage_of_another_revision_is_made_anew_with_all_that_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(tmp_path)
    run_recipe(recipe)
    before, made = marks(recipe), Store(recipe.folder).manifest("labels/gpl")
    assert made is not None and made.revision == planned.REVISIONS["label"]
    monkeypatch.setitem(planned.REVISIONS, "label", made.revision + 1)  # type: ignore[arg-type]
    changed = {key for key, mark in marks(recipe).items() if mark != before[key]}
    methods = ("kd", "gpl", "gpl-history")
    made_anew = {key for name in methods for key in (f"labels/{name}", f"rankers/{name}/seed0")}
    assert changed == {*made_anew, "report"}
    stale = {key for key, step in Run(recipe).steps.items() if not Run(recipe).done(step)}
    assert stale == changed
    assert {one.state for one in verify(recipe.folder, n_users=0)} == {"sound"}  # old, not damaged
    run_recipe(recipe)
    again = Store(recipe.folder).manifest("labels/gpl")
    assert again is not None and again.revision == made.revision + 1
