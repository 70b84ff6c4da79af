"""Readers fed with noise: they succeed or say PrerankError, and never anything else.

``PRERANK_FUZZ=50 pytest tests/fuzz`` tries fifty times as much as every day.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from prerank import store
from prerank.data.tables import (
    as_click,
    as_ids,
    as_lists,
    as_numbers,
    as_probability,
    as_share,
    as_time,
    as_vectors,
    as_whole,
    read_frame,
)
from prerank.errors import PrerankError
from prerank.recipe import Recipe, load_recipe, parse_recipe
from prerank.serving import wire

MORE = int(os.environ.get("PRERANK_FUZZ", "1"))
SLOW = (HealthCheck.too_slow,)  # a busy machine is no failure
SOME = settings(max_examples=40 * MORE, suppress_health_check=SLOW)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=4)
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
SECTIONS = st.sampled_from([*Recipe.model_fields, "", "x"])


# ---- recipes -----------------------------------------------------------------------------------


@SOME
@given(st.binary(max_size=200))
def test_any_bytes_as_a_recipe(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "r.toml"
        file.write_bytes(content)
        try:
            load_recipe(file)
        except PrerankError as error:
            assert str(file) in error.where


@SOME
@given(st.dictionaries(SECTIONS, JSON, max_size=3))
def test_any_values_as_a_recipe(values: dict[str, Any]) -> None:
    try:
        parse_recipe(values, where="r.toml")
    except PrerankError as error:
        assert error.where.startswith("r.toml") and error.exit_code == 2


@SOME
@given(st.lists(st.text(max_size=20), max_size=3))
def test_any_text_as_an_override(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "r.toml"
        file.write_text("")
        try:
            load_recipe(file, texts)
        except PrerankError as error:
            assert error.exit_code == 2


# ---- logs --------------------------------------------------------------------------------------

READERS = [
    as_click,
    as_ids,
    as_numbers,
    as_probability,
    as_share,
    as_vectors,
    as_whole,
    lambda values, file: as_time(values, file, "auto"),
    lambda values, file: as_lists(values, file, "|"),
]
COLUMNS = st.one_of(
    st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5),
    st.lists(st.none() | st.floats(), min_size=1, max_size=5),
    st.lists(st.none() | st.text(max_size=12), min_size=1, max_size=5),
    st.lists(st.none() | st.booleans(), min_size=1, max_size=5),
    st.lists(st.none() | st.lists(st.floats(width=32), max_size=3), min_size=1, max_size=5),
    st.lists(st.none() | st.dates(), min_size=1, max_size=5),
    st.lists(st.none() | st.datetimes(), min_size=1, max_size=5),
)


@settings(max_examples=80 * MORE, suppress_health_check=SLOW)
@example([2.0**63], READERS.index(as_whole))
@given(COLUMNS, st.sampled_from(range(len(READERS))))
def test_any_column_is_read_or_named(values: list[Any], reader: int) -> None:
    column = pl.Series("column", values, strict=False)
    try:
        read = READERS[reader](column, Path("table.parquet"))  # type: ignore[no-untyped-call]
        assert len(read) == len(column)
    except PrerankError as error:
        assert "table.parquet -> column" in error.where and error.exit_code == 3


@SOME
@given(st.binary(max_size=300), st.sampled_from(["parquet", "csv", "tsv", "feather", "ipc"]))
def test_any_bytes_as_a_table(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"exposures.{suffix}"
        file.write_bytes(content)
        try:
            assert len(read_frame(file, ("user",))) > 0
        except PrerankError as error:
            assert str(file) in error.where and error.exit_code == 3


# ---- tries -------------------------------------------------------------------------------------


@SOME
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_any_codes_make_a_trie_that_holds_them(levels: int, size: int, n: int, seed: int) -> None:
    from prerank.anchors.trie import Trie

    codes = np.random.default_rng(seed).integers(0, size, (n, levels)).astype(np.int32)
    trie = Trie.of(codes, [size] * levels)
    np.testing.assert_array_equal(trie.codes[trie.leaf_of_item], codes)
    np.testing.assert_array_equal(trie.codes, np.unique(codes, axis=0))
    offsets, items = trie.buckets()
    assert sorted(items) == list(range(n)) and offsets[-1] == n
    for level, keys in enumerate(trie.keys):
        assert (np.diff(keys) > 0).all()
        assert len(keys) == len(np.unique(codes[:, : level + 1], axis=0))


@SOME
@given(
    st.lists(st.lists(st.integers(-3, 9), min_size=2, max_size=2), max_size=6),
    st.lists(st.integers(-1, 5), max_size=3),
)
def test_any_codes_as_semantic_ids(codes: list[list[int]], sizes: list[int]) -> None:
    from prerank.artifacts import SemanticIds

    table = np.array(codes, np.int32).reshape(-1, 2)
    books = np.zeros((max(0, sum(sizes)), 2), np.float32)
    try:
        made = SemanticIds(table, np.array(sizes, np.int32), books)
        assert (made.codes >= 0).all() and (made.codes < made.codebook_sizes).all()
    except PrerankError as error:
        assert error.where.startswith("SemanticIds")


# ---- manifests ---------------------------------------------------------------------------------

SOUND = {
    "kind": "label",
    "fingerprint": "0123456789abcdef",
    "config": {},
    "seed": 0,
    "parents": {},
    "files": {"a.parquet": "00"},
    "schema": 1,
}


@settings(max_examples=60 * MORE, suppress_health_check=SLOW)
@given(st.dictionaries(st.sampled_from([*SOUND, "notes", "x"]), JSON, max_size=3))
def test_any_manifest_is_read_or_refused(changes: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / store.MANIFEST).write_text(json.dumps({**SOUND, **changes}))
        try:
            found = store.read_manifest(Path(folder))
            assert found is not None and isinstance(found.fingerprint, str)
            assert all(store.is_inside(name) for name in found.files)
            store.verify(Path(folder), found)
        except PrerankError as error:
            assert folder in error.where and error.exit_code == 3


@SOME
@given(st.binary(max_size=120))
def test_any_bytes_as_a_manifest(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / store.MANIFEST).write_bytes(content)
        try:
            store.read_manifest(Path(folder))
        except PrerankError as error:
            assert "manifest" in error.what or "cannot read" in error.what


@settings(max_examples=60 * MORE, suppress_health_check=SLOW)
@given(st.text(max_size=20) | st.lists(st.sampled_from(["..", ".", "/", "a", "\\"])).map("".join))
def test_a_name_that_is_inside_stays_inside(name: str) -> None:
    if store.is_inside(name):
        root = Path("/root/of/all")
        assert Path(root, name).resolve().is_relative_to(root)


# ---- binary requests ---------------------------------------------------------------------------

HEADERS = st.tuples(
    st.sampled_from([b"PRK1", b"PRK2"]),
    st.integers(0, 3),
    st.integers(0, 20),
    st.integers(0, 2**32 - 1),
    st.integers(0, 12) | st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
)


@settings(max_examples=80 * MORE, suppress_health_check=SLOW)
@given(HEADERS, st.binary(max_size=120))
def test_any_bytes_as_a_binary_request(header: tuple[Any, ...], rest: bytes) -> None:
    try:
        found = wire.decode_request(struct.pack("<4sHHIIQ", *header) + rest)
        assert len(found.candidates) == header[4]
    except PrerankError as error:
        assert error.where and error.must


@SOME
@given(
    st.text(max_size=9).filter(lambda t: max(t, default="a") < "\ud800" or max(t) > "\udfff"),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9),
    st.integers(0, 99),
)
def test_a_binary_request_comes_back(user: str, ids: list[int], top_k: int) -> None:
    candidates = np.array(ids, np.int64)
    found = wire.decode_request(wire.encode_request(user, candidates, top_k, item_mark=7))
    assert (found.user or "", found.top_k or 0, found.by_id) == (user, top_k, True)
    np.testing.assert_array_equal(found.candidates, candidates)


@SOME
@given(st.binary(max_size=60))
def test_any_bytes_as_a_binary_answer(body: bytes) -> None:
    try:
        position, logit, *_ = wire.decode_answer(b"PRK1" + body)
        assert len(position) == len(logit)
    except PrerankError as error:
        assert error.where
