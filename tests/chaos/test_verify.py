"""`prerank verify`: damage is found and named; the work done again gives the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from prerank.cli import app
from prerank.errors import ConfigError
from prerank.store import MANIFEST
from prerank.verify import Finding, verify


def by_key(folder: Path, n_users: int = 0) -> dict[str, Finding]:
    return {one.key: one for one in verify(folder, n_users)}


def test_every_stage_run_again_gives_the_same_bytes(small_run: Path) -> None:
    """Determinism: same seed, same machine, same bytes; times on a clock are left out."""
    found = verify(small_run, full=True)
    assert {one.stage for one in found} >= {"prepare", "finetune", "generate", "teach", "evaluate"}
    assert [(one.key, one.problem) for one in found if one.state != "sound"] == []
    assert all(one.replayed.startswith("all of it") for one in found)


def test_a_sample_is_replayed(small_run: Path) -> None:
    found = by_key(small_run, n_users=20)
    assert {one.state for one in found.values()} == {"sound"}
    assert found["anchors/llm"].replayed.endswith("anchors within 0e+00")
    assert int(found["anchors/llm"].replayed.split()[0]) in range(20, 31)  # whole shards of 10
    assert found["labels/gpl"].replayed.startswith("20 users")
    assert "logits" in found["rankers/gpl/seed0"].replayed
    assert "logits" in found["teachers/ranker"].replayed


def change_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def plant(file: Path) -> None:
    (file.parent / "more.parquet").write_bytes(b"x")


def link_out(file: Path) -> None:
    elsewhere = file.parents[3] / file.name
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "bit flip": (change_bit, "damaged"),
    "truncation": (cut, "damaged"),
    "missing file": (Path.unlink, "missing"),
    "a file too many": (plant, "not its own"),
    "a link out of the folder": (link_out, "outside its folder"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_of_any_artifact_is_found_and_no_other_is_blamed(run_copy: Path, kind: str) -> None:
    damage, problem = DAMAGE[kind]
    keys = sorted(str(f.parent.relative_to(run_copy)) for f in run_copy.rglob(MANIFEST))
    victims = keys[list(DAMAGE).index(kind) :: len(DAMAGE)]
    for key in victims:
        damage(max(f for f in (run_copy / key).iterdir() if f.name != MANIFEST))
    found = by_key(run_copy)
    assert {key for key, one in found.items() if one.state == "damaged"} == set(victims)
    assert all(problem in found[key].problem and key in found[key].problem for key in victims)


def test_a_manifest_that_was_changed_is_found(run_copy: Path) -> None:
    file = run_copy / "labels" / "gpl" / MANIFEST
    values = json.loads(file.read_text())
    values["seed"] = 5
    file.write_text(json.dumps(values))
    (run_copy / "embeddings" / MANIFEST).write_text('{"schema": 1')
    found = by_key(run_copy)
    bad = {key: one.problem for key, one in found.items() if one.state == "damaged"}
    assert bad.keys() == {"labels/gpl", "embeddings"}
    assert "fingerprint" in bad["labels/gpl"] and "manifest is damaged" in bad["embeddings"]


def test_other_parents_are_stale_not_damaged(run_copy: Path) -> None:
    from prerank.store import fingerprint

    file = run_copy / "embeddings" / MANIFEST
    values = json.loads(file.read_text())
    values["config"]["embedding_dim"] = 9
    decided = (values["kind"], values["config"], values["seed"], values["parents"])
    file.write_text(json.dumps({**values, "fingerprint": fingerprint(*decided)}))
    found = by_key(run_copy)
    assert found["semantic_ids"].state == "stale"
    assert found["semantic_ids"].problem == "made from another embeddings"
    assert found["dataset"].state == "sound"


def test_parents_that_are_no_artifacts_make_nothing_stale(run_copy: Path) -> None:
    from prerank.store import fingerprint

    file = run_copy / "embeddings" / MANIFEST
    values = json.loads(file.read_text())
    values["parents"] |= {"my.encoder:encode": "1", "truth": "2", "a-checkpoint": "3"}
    decided = (values["kind"], values["config"], values["seed"], values["parents"])
    values["fingerprint"] = fingerprint(*decided, values.get("revision", 0))
    file.write_text(json.dumps(values))
    assert by_key(run_copy)["embeddings"].state == "sound"


def test_weights_that_were_exchanged_are_told_by_the_replay(run_copy: Path) -> None:
    """The hashes agree, for the manifest was written anew; the scores do not."""
    import hashlib

    folder = run_copy / "rankers" / "gpl" / "seed0"
    weights = load_file(folder / "weights.safetensors")
    floats = [name for name, values in weights.items() if values.dtype == np.float32]
    name = max(floats, key=lambda n: np.abs(weights[n]).sum())
    save_file({**weights, name: weights[name] * 2}, folder / "weights.safetensors")
    values = json.loads((folder / MANIFEST).read_text())
    digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    values["files"]["weights.safetensors"] = digest
    (folder / MANIFEST).write_text(json.dumps(values))
    one = by_key(run_copy, n_users=5)["rankers/gpl/seed0"]
    assert one.state == "differs" and "logits differ by" in one.problem


def test_the_command_prints_and_ends_with_3_on_damage(run_copy: Path) -> None:
    call = CliRunner().invoke
    done = call(app, ["verify", str(run_copy), "--users", "0", "--json"])
    assert done.exit_code == 0
    states = {one["key"]: one["state"] for one in json.loads(done.stdout)["artifacts"]}
    assert states["report"] == "sound"
    cut(run_copy / "dataset" / "users.parquet")
    done = call(app, ["verify", str(run_copy), "--users", "0"])
    assert done.exit_code == 3 and "damaged" in done.stdout
    assert "error: dataset: a file of the artifact is damaged" in done.stderr
    assert "users.parquet" in done.stderr and "hint" in done.stderr


def test_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run here"):
        verify(tmp_path)
