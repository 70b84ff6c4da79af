"""Bundles that cannot be: none is served, in part or in whole."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
from onnx import TensorProto, helper

from malformed.told import told
from prerank.serving.app import create_app, load
from prerank.serving.bundle import (
    CATEGORIES,
    HISTORY,
    ITEMS,
    OFFSETS,
    SCHEMA,
    USERS,
    Bundle,
    graph_file,
)
from prerank.serving.config import ServeConfig
from prerank.store import MANIFEST

Damage = Callable[[Path], None]
PART = "items/item_part_0.float32.npy"


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return shutil.copytree(bundle.path, tmp_path / "bundle")


def refused(path: Path) -> None:
    with told(str(path), folder=path):
        load(path, ServeConfig())


def test_the_sound_bundle_is_loaded(copy: Path) -> None:
    rehash(copy)
    assert load(copy, ServeConfig()).bundle.path == copy


# ---- the manifest does not agree ---------------------------------------------------------------


def change_manifest(**values: Any) -> Damage:
    def damage(path: Path) -> None:
        found = json.loads((path / MANIFEST).read_text())
        (path / MANIFEST).write_text(json.dumps({**found, **values}))

    return damage


def write(name: str, content: bytes) -> Damage:
    return lambda path: (path / name).write_bytes(content) and None


def cut(name: str) -> Damage:
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:-9]) and None


def without(name: str) -> Damage:
    return lambda path: (path / name).unlink()


def flip(name: str) -> Damage:
    def damage(path: Path) -> None:
        content = bytearray((path / name).read_bytes())
        content[len(content) // 2] ^= 1
        (path / name).write_bytes(content)

    return damage


def link_out(path: Path) -> None:
    shutil.move(path / PART, path.parent / "elsewhere.npy")
    (path / PART).symlink_to(path.parent / "elsewhere.npy")


AS_IT_LIES: dict[str, Damage] = {
    "manifest missing": without(MANIFEST),
    "manifest of noise": write(MANIFEST, b"\x00{"),
    "manifest empty": write(MANIFEST, b""),
    "manifest a list": write(MANIFEST, b"[]"),
    "manifest cut short": cut(MANIFEST),
    "another version": change_manifest(schema=2),
    "no version": change_manifest(schema=None),
    "another kind of artifact": change_manifest(kind="train"),
    "kind a number": change_manifest(kind=7),
    "a file that leads out": change_manifest(files={SCHEMA: "0", "../../secret": "0"}),
    "no files at all": change_manifest(files={}),
    "wrong hash": change_manifest(files={SCHEMA: "0" * 64}),
    "graph cut short": cut(graph_file("scorer")),
    "graph with one other bit": flip(graph_file("user")),
    "graph missing": without(graph_file("scorer")),
    "items missing": without(ITEMS),
    "users cut short": cut(USERS),
    "a part of items with one other bit": flip(PART),
    "schema missing": without(SCHEMA),
    "a file too many": write("users/more.npy", b"x"),
    "a file outside": link_out,
}


@pytest.mark.parametrize("kind", AS_IT_LIES)
def test_a_bundle_that_its_manifest_does_not_describe_is_refused(copy: Path, kind: str) -> None:
    AS_IT_LIES[kind](copy)
    refused(copy)


def test_what_is_no_bundle_is_refused(run_folder: Path, tmp_path: Path) -> None:
    """A folder of nothing, none at all, a file, a run, artifacts of other stages."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("bundle")
    other = [run_folder, run_folder / "dataset", run_folder / "rankers" / "gpl" / "seed0"]
    for path in (tmp_path / "empty", tmp_path / "absent", tmp_path / "file", *other):
        with told(str(path), about="export", folder=tmp_path):
            create_app(path, ServeConfig())


# ---- the hashes agree, the content does not ----------------------------------------------------


def rehash(path: Path) -> None:
    """Write a manifest that describes what lies there."""
    files = (p for p in path.rglob("*") if p.is_file() and p.name != MANIFEST)
    named = {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    change_manifest(files=named)(path)


def change_schema(**values: Any) -> Damage:
    def damage(path: Path) -> None:
        found = json.loads((path / SCHEMA).read_text())
        (path / SCHEMA).write_text(json.dumps({**found, **values}))

    return damage


def change_table(name: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Damage:
    return lambda path: change(pl.read_parquet(path / name)).write_parquet(path / name)


def change_array(name: str, change: Callable[[Any], Any]) -> Damage:
    return lambda path: np.save(path / name, change(np.load(path / name)))


def pickled(path: Path) -> None:
    np.save(path / PART, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def graph_of_outside_weights(path: Path) -> None:
    """A graph whose weights lie in a file above the bundle."""
    (path.parent / "secret").write_bytes(bytes(16))
    weights = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "../../../../secret", "offset": "0", "length": "16"}.items():
        weights.external_data.add(key=key, value=value)
    ends = [helper.make_tensor_value_info(name, 1, [4]) for name in "xy"]
    node = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path / graph_file("scorer"))


def exchanged(path: Path) -> None:
    shutil.copy(path / graph_file("item"), path / graph_file("scorer"))


AS_IT_SAYS: dict[str, Damage] = {
    "schema of noise": write(SCHEMA, b"{"),
    "schema empty": write(SCHEMA, b""),
    "schema a list": write(SCHEMA, b"[]"),
    "schema without keys": write(SCHEMA, b"{}"),
    "schema of more items": change_schema(n_items=61),
    "schema of items in words": change_schema(n_items="60"),
    "schema of fewer users": change_schema(n_users=39),
    "schema without features": change_schema(features={}),
    "schema of odd features": change_schema(features={"user": [], "item": []}),
    "schema without parts": change_schema(item_parts=[]),
    "schema of odd parts": change_schema(item_parts=[{"precisions": []}]),
    "graph of noise": write(graph_file("scorer"), b"noise"),
    "graph empty": write(graph_file("user"), b""),
    "graph of another tower": exchanged,
    "graph with weights outside": graph_of_outside_weights,
    "items of noise": write(ITEMS, b"PAR1"),
    "items without ids": change_table(ITEMS, lambda t: t.rename({"id": "name"})),
    "an item too few": change_table(ITEMS, lambda t: t.head(59)),
    "users of noise": write(USERS, b"PAR1"),
    "history of noise": write(HISTORY, b"noise"),
    "history of a user too few": change_array(OFFSETS, lambda starts: starts[1:]),
    "histories that begin anywhere": change_array(OFFSETS, lambda starts: starts[::-1]),
    "histories cut short": change_array(HISTORY, lambda rows: rows[:-1]),
    "histories of fractions": change_array(HISTORY, lambda rows: rows.astype("f4")),
    "a user too many": change_table(USERS, lambda t: pl.concat([t, t.head(1)])),
    "history of absent items": change_array(HISTORY, lambda rows: rows + 60),
    "history of texts": change_array(HISTORY, lambda rows: rows.astype("U3")),
    "categories without codes": change_table(CATEGORIES, lambda t: t.drop("code")),
    "part of noise": write(PART, b"noise"),
    "part empty": write(PART, b""),
    "part pickled": pickled,
    "part of fewer items": change_array(PART, lambda rows: rows[:-1]),
    "part of other width": change_array(PART, lambda rows: rows[:, :1]),
    "users' codes of fewer users": change_array("users/codes.npy", lambda rows: rows[:-1]),
    "users' codes of other width": change_array("users/codes.npy", lambda rows: rows[:, :0]),
}


@pytest.mark.parametrize("kind", AS_IT_SAYS)
def test_a_bundle_whose_files_cannot_be_is_refused(copy: Path, kind: str) -> None:
    """Even where every hash agrees."""
    AS_IT_SAYS[kind](copy)
    rehash(copy)
    refused(copy)
