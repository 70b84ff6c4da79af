"""What makes other things of equal settings is noticed: code of another revision, other weights."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from chaos.small import small_recipe
from prerank import plan as planned
from prerank.lock import WORK
from prerank.pipeline import VERBS, Run, run_recipe
from prerank.recipe import Recipe, parse_recipe
from prerank.sources import MEMORY, source_files
from prerank.store import Manifest, Store
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


def written_logs(folder: Path) -> Path:
    folder.mkdir(parents=True)
    n, rng = 200, np.random.default_rng(0)
    pl.DataFrame({"item": [f"i{k}" for k in range(20)], "title": ["a", "b"] * 10}).write_csv(
        folder / "items.csv"
    )
    pl.DataFrame(
        {
            "user": rng.integers(20, size=n),
            "item": [f"i{k}" for k in rng.integers(20, size=n)],
            "time": np.arange(n) * 1000 + 10**9,
            "click": rng.integers(2, size=n),
        }
    ).write_csv(folder / "exposures.csv")
    return folder


def test_settings_that_decide_nothing_leave_all_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another spelling of the logs' place, and sections of sources that were not chosen."""
    logs = written_logs(tmp_path / "logs")
    monkeypatch.chdir(tmp_path)

    def recipe(path: str, **more: object) -> Recipe:
        prepare = {"source": "logs", "path": path, **more}
        return parse_recipe({"out": str(tmp_path / "runs"), "prepare": prepare})

    written = {path: marks(recipe(path))["dataset"] for path in ("logs", "logs/", str(logs))}
    assert len(set(written.values())) == 3  # as ever, where no dataset is there yet
    run_recipe(recipe("logs/"), ("prepare",))
    before = marks(recipe("logs/"))
    assert before["dataset"] == written["logs/"]
    for path in ("logs", "./logs", f"{logs}/", str(tmp_path / "runs" / ".." / "logs")):
        assert marks(recipe(path)) == before, path
    assert marks(recipe("logs", world={"n_users": 7}, anime={"funnel": "rating"})) == before
    again = run_recipe(recipe(str(logs), ratings={"threshold": 3}), ("prepare",))
    assert [step["status"] for step in again] == ["done before"]
    for more in ({"logs": {"time_unit": "s"}}, {"pools": {"n_negatives": 9}}):
        assert marks(recipe("logs", **more))["dataset"] != before["dataset"]
    logs.rename(tmp_path / "other")  # a data set has its folder's name
    assert marks(recipe("other"))["dataset"] != before["dataset"]
    (tmp_path / "other").rename(logs)
    with (logs / "exposures.csv").open("a") as file:
        file.write("1,i1,2000000000,1\n")
    assert marks(recipe("logs"))["dataset"] != before["dataset"]


def test_the_world_is_decided_by_its_own_settings(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    run_recipe(recipe, ("prepare",))
    before = marks(recipe)

    def changed(**more: object) -> bool:
        values = recipe.prepare.model_dump() | more
        return marks(recipe.model_copy(update={"prepare": type(recipe.prepare).parse(values)})) != (
            before
        )

    assert not changed(games={"min_history": 3}) and not changed(split={"test_fraction": 0.2})
    assert changed(world={**recipe.prepare.world.model_dump(), "n_items": 81})


def test_other_weights_in_the_folder_of_a_model_are_noticed(tmp_path: Path) -> None:
    encoder, checkpoint = tmp_path / "encoder", tmp_path / "checkpoint"
    for folder in (encoder, checkpoint):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"one")
    recipe = parse_recipe(
        {
            "out": str(tmp_path),
            "encode": {"encoder": "text-model", "model": str(encoder)},
            "finetune": {"init": "checkpoint", "checkpoint": str(checkpoint)},
            "methods": {"exposed-only": {"label": {"source": "none"}}, "gpl": {"anchors": "llm"}},
        }
    )
    before = marks(recipe)
    assert marks(recipe) == before
    (checkpoint / "model.safetensors").write_bytes(b"two")
    changed = {key for key, mark in marks(recipe).items() if mark != before[key]}
    assert "anchor_model" in changed and "anchors/llm" in changed and "embeddings" not in changed
    (encoder / "more.json").write_text("{}")
    assert marks(recipe)["embeddings"] != before["embeddings"]


def test_an_artifact_as_checkpoint_is_known_by_its_fingerprint(tmp_path: Path) -> None:
    checkpoint = Store(tmp_path / "yesterday")
    recipe = parse_recipe(
        {
            "out": str(tmp_path),
            "finetune": {"init": "checkpoint", "checkpoint": str(checkpoint.path("anchor_model"))},
            "methods": {"exposed-only": {"label": {"source": "none"}}, "gpl": {"anchors": "llm"}},
        }
    )
    found = []
    for mark in ("a", "b", "a"):
        with checkpoint.publish("anchor_model", Manifest("finetune", mark, {}, 0, {})) as folder:
            (folder / "model.safetensors").write_bytes(mark.encode())
        found.append(marks(recipe)["anchor_model"])
    assert found[0] == found[2] != found[1]


def test_logs_stay_remembered_when_a_model_is_looked_at(tmp_path: Path) -> None:
    logs, model, run = tmp_path / "logs", tmp_path / "model", tmp_path / "run"
    for folder in (logs, model):
        folder.mkdir()
        (folder / "file").write_text(folder.name)
        os.utime(folder / "file", (1e9, 1e9))
    (run / WORK).mkdir(parents=True)
    source_files(str(logs), run, ())
    source_files(str(model), run, ())
    memory = json.loads((run / WORK / MEMORY).read_text())
    assert {Path(name).parent.name for name in memory} == {"logs", "model"}
