"""Logs and vectors of a user that cannot be: file, column and row are named."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from malformed.told import told
from prerank.data.config import PrepareConfig
from prerank.data.prepare import prepare
from prerank.data.tables import as_vectors, read_frame

SOUND = {
    "items.csv": "item,title,price\ni1,red,1\ni2,blue,2\ni3,green,\n",
    "users.csv": "user,city\nu1,Bonn\nu2,Ulm\n",
    "exposures.csv": "request,user,item,time,click,position,propensity\n"
    + "".join(
        f"r{n},u{1 + n % 2},i{1 + n % 3},{1_700_000_000 + n * 86400},{n % 2},0,0.5\n"
        for n in range(10)
    ),
    "candidates.csv": "request,user,item,time,stage,score,truth\n"
    "r0,u1,i1,1700000000,exposed,0.5,1\nr0,u1,i2,1700000000,recalled,0.1,0\n",
}


def prepared(folder: Path, **logs: Any) -> None:
    settings = {"items": {"text": ("title",), "numeric": ("price",)}, **logs}
    values = {"source": "logs", "path": str(folder), "logs": settings}
    prepare(PrepareConfig.parse(values), seed=0)


def write(folder: Path, changes: dict[str, str | bytes | None]) -> Path:
    for name, content in {**SOUND, **changes}.items():
        if content is None:
            continue
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def row(file: str, number: int, column: str, value: str) -> dict[str, str | bytes | None]:
    """Return the change that puts ``value`` into the 1-based data row of a CSV table."""
    lines = SOUND[file].splitlines()
    place = lines[0].split(",").index(column)
    cells = lines[number].split(",")
    cells[place] = value
    lines[number] = ",".join(cells)
    return {file: "\n".join(lines) + "\n"}


def header(file: str, old: str, new: str) -> dict[str, str | bytes | None]:
    return {file: SOUND[file].replace(old, new, 1)}


EXPOSURES, CANDIDATES, ITEMS, USERS = "exposures.csv", "candidates.csv", "items.csv", "users.csv"
CASES: dict[str, tuple[dict[str, str | bytes | None], str]] = {
    "no items": ({ITEMS: None}, ""),
    "no exposures": ({EXPOSURES: None}, ""),
    "empty items": ({ITEMS: ""}, ITEMS),
    "empty exposures": ({EXPOSURES: ""}, EXPOSURES),
    "header only": ({EXPOSURES: "request,user,item,time,click\n"}, EXPOSURES),
    "header only, candidates": ({CANDIDATES: "request,user,item,time,stage\n"}, CANDIDATES),
    "binary noise": ({EXPOSURES: bytes(range(256))}, EXPOSURES),
    "zero bytes": ({EXPOSURES: b"\0" * 99}, EXPOSURES),
    "UTF-16": ({EXPOSURES: SOUND[EXPOSURES].encode("utf-16")}, EXPOSURES),
    "HTML in place of a table": ({EXPOSURES: "<html><body>403</body></html>"}, EXPOSURES),
    "JSON in place of a table": ({ITEMS: '{"item": 1}'}, ITEMS),
    "semicolons": ({EXPOSURES: SOUND[EXPOSURES].replace(",", ";")}, EXPOSURES),
    "tabs": ({EXPOSURES: SOUND[EXPOSURES].replace(",", "\t")}, EXPOSURES),
    "a column twice": (header(EXPOSURES, "position", "click"), "exposures.csv -> click"),
    "a feature twice": (header(ITEMS, "price", "title"), "items.csv -> title"),
    "a row cut short": ({EXPOSURES: SOUND[EXPOSURES] + "r0,u1,i1,1700000000\n"}, "csv, row 11"),
    "a file cut short": ({ITEMS: SOUND[ITEMS] + "i4,pink"}, "items.csv, row 4"),
    "no user column": (header(EXPOSURES, "user", "person"), "exposures.csv -> user"),
    "no item column": (header(EXPOSURES, "item", "video"), "exposures.csv -> item"),
    "capital letters": (header(EXPOSURES, "item", "Item"), "exposures.csv -> item"),
    "spaces in a header": (header(EXPOSURES, "user", " user"), "exposures.csv -> user"),
    "no item in items": (header(ITEMS, "item", "id"), "items.csv -> item"),
    "no title column": (header(ITEMS, "title", "name"), "items.csv -> title"),
    "no price column": (header(ITEMS, "price", "cost"), "items.csv -> price"),
    "no user in users": (header(USERS, "user", "uid"), "users.csv -> user"),
    "no time in candidates": (header(CANDIDATES, "time", "ts"), "candidates.csv -> time"),
    "no user in candidates": (header(CANDIDATES, "user", "uid"), "candidates.csv -> user"),
    "empty user": (row(EXPOSURES, 3, "user", ""), "user, row 3"),
    "empty item": (row(EXPOSURES, 4, "item", ""), "item, row 4"),
    "unknown item": (row(EXPOSURES, 5, "item", "i9"), "item, row 5"),
    "item in other letters": (row(EXPOSURES, 5, "item", "I1"), "item, row 5"),
    "item with a space": (row(EXPOSURES, 5, "item", "i1 "), "item, row 5"),
    "unknown item recalled": (row(CANDIDATES, 2, "item", "i9"), "item, row 2"),
    "click of 2": (row(EXPOSURES, 1, "click", "2"), "click, row 1"),
    "click of -1": (row(EXPOSURES, 2, "click", "-1"), "click, row 2"),
    "click of a half": (row(EXPOSURES, 2, "click", "0.5"), "click, row 2"),
    "click in words": (row(EXPOSURES, 6, "click", "yes"), "click, row 6"),
    "click infinite": (row(EXPOSURES, 6, "click", "inf"), "click, row 6"),
    "time in words": (row(EXPOSURES, 7, "time", "noon"), "time, row 7"),
    "time empty": (row(EXPOSURES, 7, "time", ""), "time, row 7"),
    "time negative": (row(EXPOSURES, 7, "time", "-1700000000"), "time, row 7"),
    "time in ms among seconds": (row(EXPOSURES, 7, "time", "1700000000000"), "-> time"),
    "time NaN": (row(EXPOSURES, 7, "time", "nan"), "time, row 7"),
    "time infinite": (row(EXPOSURES, 7, "time", "inf"), "-> time"),
    "time in month 13": (row(EXPOSURES, 7, "time", "2024-13-01"), "time, row 7"),
    "propensity of 0": (row(EXPOSURES, 8, "propensity", "0"), "propensity, row 8"),
    "propensity above 1": (row(EXPOSURES, 8, "propensity", "1.01"), "propensity, row 8"),
    "propensity in percent": (row(EXPOSURES, 8, "propensity", "50%"), "propensity, row 8"),
    "position negative": (row(EXPOSURES, 9, "position", "-1"), "position, row 9"),
    "position of a half": (row(EXPOSURES, 9, "position", "1.5"), "position, row 9"),
    "request of two users": (row(EXPOSURES, 2, "request", "r0"), "request, row 2"),
    "unknown stage": (row(CANDIDATES, 1, "stage", "shown"), "stage, row 1"),
    "empty stage": (row(CANDIDATES, 1, "stage", ""), "stage, row 1"),
    "score in words": (row(CANDIDATES, 1, "score", "high"), "score, row 1"),
    "score infinite": (row(CANDIDATES, 1, "score", "-inf"), "score, row 1"),
    "truth above 1": (row(CANDIDATES, 2, "truth", "1.5"), "truth, row 2"),
    "truth below 0": (row(CANDIDATES, 2, "truth", "-0.5"), "truth, row 2"),
    "item twice": (row(ITEMS, 2, "item", "i1"), "item, row 2"),
    "item empty": (row(ITEMS, 2, "item", ""), "item, row 2"),
    "user twice": (row(USERS, 2, "user", "u1"), "user, row 2"),
    "user empty": (row(USERS, 1, "user", ""), "user, row 1"),
    "price in words": (row(ITEMS, 1, "price", "dear"), "price, row 1"),
    "price infinite": (row(ITEMS, 1, "price", "inf"), "price, row 1"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_log_that_cannot_be_is_named(tmp_path: Path, case: str) -> None:
    changes, where = CASES[case]
    write(tmp_path, changes)
    with told(where, folder=tmp_path):
        prepared(tmp_path)


def test_the_sound_log_is_read(tmp_path: Path) -> None:
    prepared(write(tmp_path, {}))


COLUMNS: dict[str, pl.Series] = {
    "text": pl.Series(["[1, 2]", "[3, 4]"]),
    "numbers": pl.Series([1.0, 2.0]),
    "booleans": pl.Series([True, False]),
    "lists of text": pl.Series([["1", "2"], ["3", "4"]]),
    "lists of lists": pl.Series([[[1.0], [2.0]], [[3.0], [4.0]]]),
    "lengths differ": pl.Series([[1.0, 2.0], [3.0]]),
    "an empty vector": pl.Series([[1.0, 2.0], []], dtype=pl.List(pl.Float32)),
    "only empty vectors": pl.Series([[], []], dtype=pl.List(pl.Float32)),
    "NaN": pl.Series([[1.0, 2.0], [float("nan"), 1.0]]),
    "infinity": pl.Series([[1.0, 2.0], [float("inf"), 1.0]]),
    "a null inside": pl.Series([[1.0, 2.0], [None, 1.0]]),
    "beyond float32": pl.Series([[1.0, 2.0], [1e39, 1.0]]),
    "base64 of 3 bytes": pl.Series(["AAAA", "AAAA"]),
    "base64 of two lengths": pl.Series(["AAAAAA==", "AAAAAAAAAAA="]),
    "dates": pl.Series([date(2024, 1, 1), date(2024, 1, 2)]),
    "structs": pl.Series([{"a": 1.0}, {"a": 2.0}]),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_vectors_that_cannot_be_are_named(case: str) -> None:
    with told("items.parquet -> vector"):
        as_vectors(COLUMNS[case].alias("vector"), Path("items.parquet"))


def test_empty_values_blank_names_and_quotes_are_no_rows_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    for text, rows in (
        ("a,b\n1,\n,\n", [("1", None), (None, None)]),
        ("a,,\n1,2,\n", [("1", "2", None)]),  # what a spreadsheet leaves
        ('a,b\n"x\ny\nz",\n1,2\n', [("x\ny\nz", None), ("1", "2")]),
        ("a\n1\n\n2\n", [("1",), (None,), ("2",)]),
    ):
        file.write_text(text)
        assert read_frame(file).rows() == rows
    file.write_text("a,b\n" + "1,\n" * 9 + "1\n")
    assert len(read_frame(file, rows=(3, 6))) == 6
    with told("a.csv, row 10", about="got: 1 fields, and 1 such rows in all"):
        read_frame(file, rows=(6, 9))
