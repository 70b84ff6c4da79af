"""`run` on a damaged folder: what is whole is kept, what is damaged is refused or made again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from chaos.small import fingerprints, hashes, small_recipe
from prerank.errors import ArtifactError
from prerank.pipeline import VERBS, Run, execute, run_recipe
from prerank.store import MANIFEST, Manifest, read_part

CHILDREN = {
    "dataset": "embeddings",
    "embeddings": "semantic_ids",
    "semantic_ids": "anchor_model",
    "anchor_model": "anchors/llm",
    "anchors/llm": "labels/gpl",
    "anchors/history": "labels/gpl-history",
    "teachers/ranker": "labels/kd",
    "labels/gpl": "rankers/gpl/seed0",
    "rankers/gpl/seed0": "report",
}
"""Of every artifact, one that is made from it."""


def largest(folder: Path) -> Path:
    files = (file for file in folder.iterdir() if file.is_file() and file.name != MANIFEST)
    return max(files, key=lambda file: file.stat().st_size)


@pytest.mark.parametrize("key", CHILDREN)
@pytest.mark.parametrize("kind", ["flip", "cut"])
def test_a_changed_file_is_never_read(run_copy: Path, key: str, kind: str) -> None:
    shutil.rmtree(run_copy / CHILDREN[key])
    file = largest(run_copy / key)
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 8
    file.write_bytes(content if kind == "flip" else content[: len(content) // 2])
    with pytest.raises(ArtifactError, match="damaged") as told:
        run_recipe(small_recipe(run_copy.parent))
    assert told.value.where == str(file) and "delete the artifact's folder" in told.value.hint
    assert not (run_copy / CHILDREN[key]).exists()
    assert not list((run_copy / ".work").glob("new-*"))


def test_what_is_incomplete_or_of_other_parents_is_made_again(
    small_run: Path, run_copy: Path
) -> None:
    """Every kind of artifact in one of four ways, and leftovers of a killed run beside them."""
    for number, key in enumerate(["report", *CHILDREN]):
        folder = run_copy / key
        values = json.loads((folder / MANIFEST).read_text())
        if number % 4 == 0:
            largest(folder).unlink()
        elif number % 4 == 1:
            (folder / MANIFEST).unlink()
        elif number % 4 == 2:
            (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:99])
        else:
            values["parents"] = {"dataset": "0123456789abcdef"}
            (folder / MANIFEST).write_text(json.dumps(values))
    for name in ("new-0123", "old-4567"):
        (run_copy / ".work" / name).mkdir()
        (run_copy / ".work" / name / "half.parquet").write_bytes(b"half")
    steps = run_recipe(small_recipe(run_copy.parent))
    made = {step["key"] for step in steps if step["status"] == "made"}
    assert made == {"report", *CHILDREN}
    assert fingerprints(run_copy) == fingerprints(small_run)
    assert hashes(run_copy) == hashes(small_run)
    assert {path.name for path in (run_copy / ".work").iterdir()} == {"lock"}


@pytest.mark.parametrize("key", ["anchor_model", "anchors/llm"])
def test_damaged_parts_of_unfinished_work_are_made_again(
    small_run: Path, run_copy: Path, key: str
) -> None:
    """Shards and training state with one wrong bit are not used: the end is the same."""
    run = Run(small_recipe(run_copy.parent))
    step = run.steps[key]
    shutil.rmtree(run_copy / key)
    kept = run_copy / ".work" / "kept"
    with pytest.raises(KeyboardInterrupt), run.store.publish(key, Manifest("", "", {}, 0, {})) as o:
        VERBS[step.stage](run, step, o)
        shutil.copytree(run.store.work(key, step.fingerprint), kept)
        raise KeyboardInterrupt  # killed just before the manifest
    files = sorted(kept.glob("*-*.safetensors"))
    assert len(files) == {"anchor_model": 1, "anchors/llm": 6}[key]
    for file in files:
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
        assert read_part(file) is None
    work = run.store.work(key, step.fingerprint)
    shutil.rmtree(work)
    kept.rename(work)
    execute(run, step)
    assert hashes(run_copy) == hashes(small_run)
