"""Artifact folders: round trips, atomic publication, damage, lineage."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prerank import artifacts as a
from prerank import store as stores
from prerank.errors import ArtifactError, SchemaError, StaleArtifactError
from prerank.lock import locked
from prerank.store import MANIFEST, Manifest, Store
from tiny import anchors, dataset, labels

MARK = Manifest("label", "abc", {"k": 1}, 0, {"dataset": "x"})


def _assert_same(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    for name, value in vars(left).items():
        other = getattr(right, name)
        if isinstance(value, np.ndarray):
            assert value.dtype.kind == other.dtype.kind
            np.testing.assert_array_equal(value, other)
        elif hasattr(value, "__dataclass_fields__"):
            _assert_same(value, other)
        elif isinstance(value, dict):
            assert value.keys() == other.keys()
            for key in value:
                np.testing.assert_array_equal(value[key], other[key])
        else:
            assert value == other


def _sids() -> a.SemanticIds:
    codes = np.array([[0, 1], [1, 0]], np.int32)
    return a.SemanticIds(
        codes, np.array([2, 2], np.int32), np.eye(4, 3, dtype=np.float32), {"x": 1}
    )


def _report() -> a.Report:
    record = a.Record("gpl", "exposed", "all", "auc", 0.5, 0.4, 0.6, 10, 5)
    return a.Report((record,), (), {"notes": ["n"]})


@pytest.mark.parametrize(
    "make",
    [
        dataset,
        lambda: a.ItemEmbeddings(np.eye(3, dtype=np.float32)),
        _sids,
        anchors,
        labels,
        _report,
    ],
)
def test_save_then_load_gives_the_same(tmp_path: Path, make: Callable[[], Any]) -> None:
    artifact = make()
    stores.save(tmp_path, artifact)
    _assert_same(artifact, stores.load(tmp_path, type(artifact)))


def test_embeddings_are_plain_safetensors_written_in_blocks_and_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.numpy import load_file

    monkeypatch.setattr(stores, "BLOCK_BYTES", 50)
    vectors = np.eye(7, 5, dtype=np.float32)
    artifact = a.ItemEmbeddings(vectors, quality={"anisotropy": 0.5})
    stores.save(tmp_path, artifact)
    np.testing.assert_array_equal(load_file(tmp_path / "vectors.safetensors")["vectors"], vectors)
    loaded = stores.load(tmp_path, a.ItemEmbeddings)
    np.testing.assert_array_equal(loaded.vectors, vectors)
    assert loaded.quality == {"anisotropy": 0.5}
    loaded.vectors[0] = 0  # mapped memory: the file stays as it is
    np.testing.assert_array_equal(load_file(tmp_path / "vectors.safetensors")["vectors"], vectors)


def test_anchors_of_an_older_prerank_are_refused_with_what_to_do(tmp_path: Path) -> None:
    stores.save(tmp_path, anchors())
    old = {"offsets": anchors().offsets, "vectors": np.eye(3, 2, dtype=np.float32)}
    stores.save_arrays(tmp_path / "anchors.safetensors", old)
    with pytest.raises(ArtifactError, match="an older prerank stored") as error:
        stores.load(tmp_path, a.InterestAnchors)
    assert "prerank run" in str(error.value)


def test_a_full_disk_is_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / "vectors.safetensors").symlink_to("/dev/full")
    with pytest.raises(ArtifactError, match="the disk is full"):
        stores.save(tmp_path, a.ItemEmbeddings(np.eye(300, dtype=np.float32)))


def test_semantic_ids_with_a_network_and_item_ids_survive(tmp_path: Path) -> None:
    from dataclasses import replace

    from prerank.vocabulary import Vocabulary

    weights = {"encode_bias_H": np.array([1, 2], np.float32)}
    ids = replace(_sids(), network=weights, items=Vocabulary.of(["b", "a"]))
    stores.save(tmp_path, ids)
    loaded = stores.load(tmp_path, a.SemanticIds)
    _assert_same(ids, loaded)
    assert loaded.items.ids.tolist() == ["a", "b"]


def test_images_survive(tmp_path: Path) -> None:
    from dataclasses import replace

    sound = dataset()
    image = np.array(["a.png", "", "file:///c", ""], object)
    stores.save(tmp_path, replace(sound, catalog=replace(sound.catalog, image=image)))
    assert stores.load(tmp_path, a.Dataset).catalog.image.tolist() == image.tolist()


def test_given_vectors_survive(tmp_path: Path) -> None:
    from dataclasses import replace

    sound = dataset()
    vectors = np.array([[1, 0], [0, 1], [np.nan, np.nan], [1, 1]], np.float32)
    with_vectors = replace(sound, catalog=replace(sound.catalog, vectors=vectors))
    stores.save(tmp_path, with_vectors)
    np.testing.assert_array_equal(stores.load(tmp_path, a.Dataset).catalog.vectors, vectors)


def _publish(store: Store, text: str = "hello", mark: Manifest = MARK) -> Path:
    with store.publish("labels/gpl", mark) as out:
        (out / "data.txt").write_text(text)
    return store.path("labels/gpl")


def test_publish_writes_manifest_with_hashes(tmp_path: Path) -> None:
    path = _publish(Store(tmp_path))
    manifest = stores.read_manifest(path)
    assert manifest is not None
    assert manifest.kind == "label" and manifest.parents == {"dataset": "x"}
    # pragma: allowlist nextline secret
    digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert manifest.files == {"data.txt": digest}
    assert not list((tmp_path / ".work").iterdir())


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o444), (0o027, 0o440), (0o077, 0o400)])
def test_who_may_read_the_folder_may_read_its_files(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        with Store(tmp_path / "run").publish(MARK.kind, MARK) as out:
            stores.save_arrays(out / "arrays.safetensors", {"a": np.zeros(2)})
            (out / "about.json").write_text("{}")
    finally:
        os.umask(before)
    files = list((tmp_path / "run" / MARK.kind).iterdir())
    assert len(files) == 3 and {file.stat().st_mode & 0o444 for file in files} == {mode}


def test_failed_stage_leaves_the_old_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = _publish(store)
    with pytest.raises(RuntimeError), store.publish("labels/gpl", MARK) as out:
        (out / "data.txt").write_text("half")
        raise RuntimeError("killed")
    assert (path / "data.txt").read_text() == "hello"
    assert store.has("labels/gpl", "abc")


def test_publish_replaces(tmp_path: Path) -> None:
    store = Store(tmp_path)
    _publish(store)
    path = _publish(store, "new")
    assert (path / "data.txt").read_text() == "new"


@pytest.mark.parametrize("can_exchange", [True, False])
def test_what_is_replaced_is_deleted(
    tmp_path: Path, can_exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_exchange:
        monkeypatch.setattr(stores, "_exchange", lambda one, other: False)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name)
    stores.swap(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old" / "which").read_text() == "new"


def test_a_reader_never_finds_nothing_while_an_artifact_is_replaced(tmp_path: Path) -> None:
    final, over, missed = tmp_path / "final", threading.Event(), []
    final.mkdir()

    def look() -> None:
        while not over.is_set():
            if not final.exists():
                missed.append(1)

    if not stores._exchange(_folder(tmp_path / "one"), _folder(tmp_path / "two")):
        pytest.skip("this disk cannot exchange two names")
    reader = threading.Thread(target=look)
    reader.start()
    for number in range(300):
        stores.swap(_folder(tmp_path / f"new-{number}"), final)
    over.set()
    reader.join()
    assert not missed


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


REPLACE = """
import os, sys
from pathlib import Path
from prerank import store
from prerank.store import Manifest
out, dies = Path(sys.argv[1]), sys.argv[2]
exchange, replace = store._exchange, Path.replace

def exchanged(one, other):
    if dies == "before":
        os._exit(9)
    done = dies != "between" and exchange(one, other)
    if dies == "after":
        os._exit(9)
    return done

def replaced(one, other):
    if dies == "between" and one.parent.name == "export-bundle":
        os._exit(9)  # the old one is away
    return replace(one, other)

store._exchange, Path.replace = exchanged, replaced
with store.replacing(out, Manifest("export", sys.argv[3], {}, 0, {})) as folder:
    (folder / "which").write_text(sys.argv[3])
    if dies == "filling":
        os._exit(9)
"""


@pytest.mark.parametrize("dies", ["filling", "before", "between", "after"])
def test_killed_while_a_bundle_is_replaced_the_old_or_the_new_one_is_there(
    tmp_path: Path, dies: str
) -> None:
    out = tmp_path / "bundle"

    def write(mark: str, dies: str = "") -> int:
        command = [sys.executable, "-c", REPLACE, str(out), dies, mark]
        return subprocess.run(command, check=False).returncode

    assert write("old") == 0 and [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert write("new", dies) == 9
    with locked(tmp_path):  # a run that starts in the same folder clears its own leftovers only
        pass
    if dies == "between":
        assert not out.exists()  # the next writer puts the old one back, before anything else
        with pytest.raises(KeyboardInterrupt), stores.replacing(out, Manifest("", "", {}, 0, {})):
            raise KeyboardInterrupt
    found = stores.read_manifest(out)
    assert found is not None and found.fingerprint == ("new" if dies == "after" else "old")
    stores.verify(out, found)
    assert write("newer") == 0
    assert (out / "which").read_text() == "newer"
    assert [path.name for path in (tmp_path / ".work").iterdir()] == ["lock"]


def test_a_run_that_starts_beside_an_export_does_not_disturb_it(tmp_path: Path) -> None:
    with stores.replacing(tmp_path / "bundle", Manifest("export", "mark", {}, 0, {})) as folder:
        with locked(tmp_path):
            assert folder.is_dir()
        (folder / "which").write_text("whole")
    assert (tmp_path / "bundle" / "which").read_text() == "whole"


def test_folder_without_manifest_is_unfinished(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.path("dataset").mkdir()
    assert not store.has("dataset", "abc")
    with pytest.raises(ArtifactError, match="not there"):
        store.checked("dataset")


@pytest.mark.parametrize("damage", ["change", "truncate", "remove"])
def test_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    file = _publish(store) / "data.txt"
    if damage == "remove":
        file.unlink()
    else:
        file.write_text({"change": "hellO", "truncate": "hel"}[damage])
    with pytest.raises(ArtifactError, match=r"damaged|missing"):
        store.checked("labels/gpl", "abc")


def test_other_parents_are_stale(tmp_path: Path) -> None:
    store = Store(tmp_path)
    _publish(store)
    with pytest.raises(StaleArtifactError, match="other parents"):
        store.checked("labels/gpl", "other")


def test_damaged_manifest_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    manifest = _publish(store) / MANIFEST
    manifest.write_text(manifest.read_text()[:40])
    assert not store.has("labels/gpl", "abc")
    with pytest.raises(ArtifactError, match="damaged"):
        store.checked("labels/gpl")


def test_unknown_schema_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    manifest = _publish(store) / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema": 99}))
    with pytest.raises(SchemaError, match="cannot read"):
        store.checked("labels/gpl")


def test_key_cannot_leave_the_run(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="outside"):
        Store(tmp_path / "run").path("../other")


def test_fingerprint_depends_on_all_that_decides() -> None:
    base = stores.fingerprint("k", {"a": 1}, 0, {"p": "x"})
    assert base == stores.fingerprint("k", {"a": 1}, 0, {"p": "x"})
    others = {
        stores.fingerprint("k2", {"a": 1}, 0, {"p": "x"}),
        stores.fingerprint("k", {"a": 2}, 0, {"p": "x"}),
        stores.fingerprint("k", {"a": 1}, 1, {"p": "x"}),
        stores.fingerprint("k", {"a": 1}, 0, {"p": "y"}),
    }
    assert base not in others and len(others) == 4


def test_lists_and_vectors_of_features_come_back(tmp_path: Path) -> None:
    lists = a.CodeLists(np.array([0, 2, 2, 3]), np.array([1, 0, 1], np.int32), ordered=True)
    vectors = np.array([[1, 2], [np.nan, np.nan], [3, 4]], np.float32)
    features = a.Features(
        3, categories={"seen": ("x", "y")}, lists={"seen": lists}, vectors={"face": vectors}
    )
    stores.save(tmp_path, replace(dataset(), user_features=features))
    again = stores.load(tmp_path, a.Dataset).user_features
    _assert_same(again.lists["seen"], lists)
    np.testing.assert_array_equal(again.vectors["face"], vectors)
    assert (again.categories, again.n_rows) == (features.categories, 3)


def test_a_path_may_be_text(tmp_path: Path) -> None:
    stores.save(tmp_path, a.ItemEmbeddings(np.eye(3, dtype=np.float32)))
    assert len(stores.load(str(tmp_path), a.ItemEmbeddings).vectors) == 3
