"""Own logs: what is read, and that every bad input is named by file, column, row and value."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from prerank.artifacts import TEST, TRAIN, VALIDATION, Dataset
from prerank.data.config import LogsConfig, PrepareConfig
from prerank.data.prepare import prepare
from prerank.data.tables import as_time, frequent, read_frame
from prerank.errors import ConfigError, DataError

DAY = 86_400_000
START = 1_700_000_000_000
Tables = dict[str, pl.DataFrame]


def sound_tables() -> Tables:
    """Ten days of one request a day and user: two items shown, one of them clicked."""
    days = list(range(10))
    rows = [
        (f"r{day}{user}", user, item, START + day * DAY, click, click, 0.5)
        for day in days
        for user in ("u1", "u2")
        for item, click in ((day % 4, 1), (4 + day % 2, 0))
    ]
    names = ["request", "user", "item", "time", "click", "position", "propensity"]
    exposures = pl.DataFrame(rows, schema=names, orient="row")
    candidates = pl.DataFrame(
        {
            "request": ["r0u1", "r0u1", "r1u2"],
            "user": ["u1", "u1", "u2"],
            "item": [0, 6, 6],
            "time": [START, START, START + DAY],
            "stage": ["exposed", "recalled", "rank"],
            "score": [0.9, 0.1, 0.4],
        }
    )
    return {
        "items": pl.DataFrame(
            {
                "item": range(7),
                "title": [f"title {n}" for n in range(7)],
                "brand": ["a", "b", "a", None, "c", "a", "b"],
                "price": [1.5, 2.0, None, 4.0, 5.0, 6.0, 7.0],
                "vector": [[float(n), 1.0] for n in range(7)],
            }
        ),
        "users": pl.DataFrame({"user": ["u1", "u2", "u3"], "sex": ["f", "m", "f"]}),
        "exposures": exposures,
        "candidates": candidates,
    }


def write(path: Path, tables: Tables, suffix: str = "parquet") -> Path:
    for name, frame in tables.items():
        if suffix == "csv":
            frame.select(pl.exclude("vector")).write_csv(path / f"{name}.csv")
        else:
            frame.write_parquet(path / f"{name}.parquet")
    return path


def read(path: Path, split: dict[str, Any] | None = None, **logs: Any) -> Dataset:
    items = {"text": ("title", "brand"), "categorical": ("brand",), "numeric": ("price",)}
    users = {"categorical": ("sex",)}
    settings = {"items": items, "users": users, **logs}
    config = {"source": "logs", "path": str(path), "logs": settings, "split": split or {}}
    return prepare(PrepareConfig.parse(config), seed=0)


def test_a_sound_log(tmp_path: Path) -> None:
    data = read(write(tmp_path, sound_tables()))
    assert data.time_unit == "ms"
    assert (len(data.users), len(data.items)) == (3, 7)
    # 40 rows, ten days: the last day is test, the one before validation.
    assert np.bincount(data.exposures.split).tolist() == [32, 4, 4]
    assert data.cuts.validation == START + 8 * DAY and data.cuts.test == START + 9 * DAY
    assert data.cuts.anchors == START + 4 * DAY
    assert data.catalog.text.tolist()[:4] == ["title 0 a", "title 1 b", "title 2 a", "title 3"]
    assert data.catalog.vectors is not None and data.catalog.vectors[3].tolist() == [3.0, 1.0]
    assert data.candidates.stages[data.candidates.stage[0]] == "exposed"
    assert data.candidates.score.tolist() == pytest.approx([0.9, 0.1, 0.4])
    assert data.candidates.request.tolist() == [0, 0, 3]
    assert len(data.interactions) == 18
    assert data.user_features.categories == {"sex": ("f", "m")}
    assert "1 of 3 users have neither an exposure nor an interaction" in data.notes
    assert "interactions are the clicked exposures" in data.notes
    assert "exposures.parquet: times were read as milliseconds, by size" in data.notes


def test_rows_that_repeat_and_requests_of_one_row_are_noted(tmp_path: Path) -> None:
    tables = sound_tables()
    assert not [n for n in read(write(tmp_path, tables)).notes if "repeat" in n or "lists" in n]
    twice = tables["exposures"]
    tables["exposures"] = pl.concat([twice, twice.head(3)])
    notes = read(write(tmp_path, tables)).notes
    assert "3 exposures repeat another row exactly; each counts" in notes
    each = pl.Series("request", [str(k) for k in range(len(twice))])
    tables["exposures"] = twice.with_columns(each)
    tables["candidates"] = tables["candidates"].drop("request")
    assert any(
        "40 exposures in 40 requests" in note for note in read(write(tmp_path, tables)).notes
    )


def test_csv_and_parquet_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / "parquet").mkdir()
    tables = sound_tables()
    tables["items"] = tables["items"].drop("vector")
    one = read(write(tmp_path / "csv", tables, "csv"))
    two = read(write(tmp_path / "parquet", tables))
    for name in ("exposures", "candidates", "interactions", "pools"):
        left, right = getattr(one, name).columns(), getattr(two, name).columns()
        for column in left:
            np.testing.assert_array_equal(left[column], right[column])


def test_other_names_folders_and_globs(tmp_path: Path) -> None:
    tables = sound_tables()
    days = tables["exposures"].rename({"user": "uid", "time": "ts"})
    folder = tmp_path / "shown"
    folder.mkdir()
    days[:20].write_parquet(folder / "day-1.parquet")
    days[20:].write_parquet(folder / "day-2.parquet")
    del tables["exposures"]
    write(tmp_path, tables)
    columns = {"user": "uid", "time": "ts"}
    for file in ("shown", "shown/day-*.parquet"):
        assert len(read(tmp_path, exposures={"file": file, "columns": columns}).exposures) == 40


def test_given_split(tmp_path: Path) -> None:
    tables = sound_tables()
    names = ["train"] * 20 + ["validation"] * 8 + ["test"] * 12
    tables["exposures"] = tables["exposures"].with_columns(split=pl.Series(names))
    data = read(write(tmp_path, tables), split={"method": "given"})
    assert data.exposures.split.tolist() == [TRAIN] * 20 + [VALIDATION] * 8 + [TEST] * 12
    assert data.cuts.test == START + 7 * DAY


def test_a_given_split_that_leaks(tmp_path: Path) -> None:
    tables = sound_tables()
    names = ["train", "validation"] * 19 + ["test"] * 2
    tables["exposures"] = tables["exposures"].with_columns(split=pl.Series(names))
    with pytest.raises(DataError, match="training exposures reach into validation") as caught:
        read(write(tmp_path, tables), split={"method": "given"})
    assert "must end before validation begins" in str(caught.value)


@pytest.mark.parametrize("periods", [["train"], ["validation", "test"]])
def test_a_given_split_without_a_period(tmp_path: Path, periods: list[str]) -> None:
    tables = sound_tables()
    names = (periods * 40)[: len(tables["exposures"])]
    tables["exposures"] = tables["exposures"].with_columns(split=pl.Series(sorted(names)[::-1]))
    with pytest.raises(DataError, match=r"no (test|training) exposures[\s\S]*exposures -> split"):
        read(write(tmp_path, tables), split={"method": "given"})


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"categorical": ["content"]}, r"name of a field of ours[\s\S]*items -> content"),
        ({"categorical": ["brand"], "multi_valued": ["brand"]}, r"share a name[\s\S]*brand"),
    ],
    ids=["ours", "two kinds"],
)
def test_names_of_features_must_differ(
    tmp_path: Path, named: dict[str, list[str]], message: str
) -> None:
    tables = sound_tables()
    tables["items"] = tables["items"].with_columns(content=pl.col("brand"))
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, tables), items=named)


def test_no_time_at_all(tmp_path: Path) -> None:
    tables = {n: t.drop("time", strict=False) for n, t in sound_tables().items()}
    data = read(write(tmp_path, tables))
    assert data.time_unit == "none"
    assert "the log has no time" in data.notes
    held = data.exposures.request[data.exposures.split != TRAIN]
    assert not set(held) & set(data.exposures.request[data.exposures.split == TRAIN])


def test_an_interactions_table_stands_for_the_clicks(tmp_path: Path) -> None:
    tables = sound_tables()
    tables["interactions"] = pl.DataFrame({"user": ["u3"], "item": [2], "time": [START]})
    data = read(write(tmp_path, tables))
    assert data.interactions.user.tolist() == [2]


def test_unknown_clicks_are_kept_unknown(tmp_path: Path) -> None:
    tables = sound_tables()
    clicks = pl.when(pl.col("item") == 4).then(None).otherwise(pl.col("click"))
    tables["exposures"] = tables["exposures"].with_columns(clicks.alias("click"))
    data = read(write(tmp_path, tables))
    assert (data.exposures.click == -1).sum() == 10
    assert "click" in tables["exposures"].columns
    tables["exposures"] = tables["exposures"].drop("click")
    with pytest.raises(DataError, match="no click is known in training"):
        read(write(tmp_path, tables))
    tables["interactions"] = pl.DataFrame({"user": ["u1"], "item": [3], "time": [START]})
    with pytest.raises(DataError, match="every click of training is unknown"):
        read(write(tmp_path, tables))


def at(table: str, column: str, row: int, value: object) -> Callable[[Tables], None]:
    """Return a change that puts ``value`` into 1-based ``row`` of a column."""

    def change(tables: Tables) -> None:
        values = tables[table][column].to_list()
        values[row - 1] = value
        series = pl.Series(column, values, strict=False)
        tables[table] = tables[table].with_columns(series)

    return change


def cast(table: str, column: str, kind: Any) -> Callable[[Tables], None]:
    def change(tables: Tables) -> None:
        tables[table] = tables[table].with_columns(pl.col(column).cast(kind))

    return change


def drop(table: str, column: str) -> Callable[[Tables], None]:
    def change(tables: Tables) -> None:
        tables[table] = tables[table].drop(column)

    return change


def no_rows(table: str) -> Callable[[Tables], None]:
    def change(tables: Tables) -> None:
        tables[table] = tables[table].clear()

    return change


def without(table: str) -> Callable[[Tables], None]:
    def change(tables: Tables) -> None:
        del tables[table]

    return change


def all_of(table: str, **values: object) -> Callable[[Tables], None]:
    def change(tables: Tables) -> None:
        tables[table] = tables[table].with_columns(**{n: pl.lit(v) for n, v in values.items()})

    return change


BAD: dict[str, tuple[Callable[[Tables], None], str, str]] = {
    "missing column": (drop("exposures", "item"), "exposures.parquet -> item", "`item` is missing"),
    "missing text column": (drop("items", "title"), "items.parquet -> title", "is missing"),
    "missing feature column": (drop("items", "price"), "items.parquet -> price", "is missing"),
    "time in exposures only": (drop("candidates", "time"), "candidates.parquet -> time", "missing"),
    "ids of a wrong type": (
        cast("exposures", "item", pl.Float64),
        "exposures.parquet -> item",
        "wrong type",
    ),
    "clicks of a wrong type": (
        all_of("exposures", click=[1]),
        "exposures.parquet -> click",
        "wrong type",
    ),
    "item id twice": (at("items", "item", 3, 0), "items.parquet -> item, row 3", "twice"),
    "user id twice": (at("users", "user", 2, "u1"), "users.parquet -> user, row 2", "twice"),
    "click out of range": (
        at("exposures", "click", 5, 2),
        "exposures.parquet -> click, row 5",
        "neither 1, 0 nor null",
    ),
    "unknown item exposed": (
        at("exposures", "item", 7, 99),
        "exposures.parquet -> item, row 7",
        "does not have",
    ),
    "unknown item recalled": (
        at("candidates", "item", 2, 99),
        "candidates.parquet -> item, row 2",
        "does not have",
    ),
    "null user": (at("exposures", "user", 4, None), "exposures.parquet -> user, row 4", "empty"),
    "empty user": (at("users", "user", 1, ""), "users.parquet -> user, row 1", "empty"),
    "negative time": (at("exposures", "time", 9, -5), "exposures.parquet -> time, row 9", "nega"),
    "missing time": (at("exposures", "time", 9, None), "-> time, row 9", "missing"),
    "times of two units": (at("exposures", "time", 2, 1_700_000_000), "-> time", "inferred"),
    "NaN in a vector": (
        at("items", "vector", 6, [1.0, float("nan")]),
        "items.parquet -> vector, row 6",
        "NaN",
    ),
    "a short vector": (at("items", "vector", 6, [1.0]), "-> vector, row 6", "another length"),
    "vectors that are text": (all_of("items", vector="[1]"), "-> vector", "not base64"),
    "infinite feature": (at("items", "price", 2, float("inf")), "-> price, row 2", "infinite"),
    "a feature that is no number": (
        at("items", "price", 2, "dear"),
        "items.parquet -> price, row 2",
        "not a number",
    ),
    "a feature beyond float32": (
        at("items", "price", 4, 1e300),
        "items.parquet -> price, row 4",
        "too large",
    ),
    "a propensity of 0 as float32": (
        at("exposures", "propensity", 6, 1e-60),
        "exposures.parquet -> propensity, row 6",
        "range",
    ),
    "a score beyond float32": (at("candidates", "score", 2, -1e39), "score, row 2", "too large"),
    "a position beyond int32": (at("exposures", "position", 8, 2**31), "position, row 8", "whole"),
    "titles that are lists": (all_of("items", title=["a"]), "items.parquet -> title", "wrong type"),
    "titles that are bytes": (all_of("items", title=b"a"), "items.parquet -> title", "wrong type"),
    "text of bytes": (all_of("items", brand=b"a"), "items.parquet -> brand", "wrong type"),
    "text of lists of bytes": (all_of("items", brand=[b"\xff"]), "-> brand", "wrong type"),
    "text of durations": (all_of("items", brand=timedelta(1)), "-> brand", "wrong type"),
    "categories that are bytes": (all_of("users", sex=b"f"), "users.parquet -> sex", "wrong type"),
    "images that are bytes": (all_of("items", image=b"png"), "-> image", "wrong type"),
    "a time in 2100": (
        at("exposures", "time", 3, 4_102_444_800_000),
        "exposures.parquet -> time, row 3",
        "too late",
    ),
    "propensity of 0": (at("exposures", "propensity", 8, 0.0), "propensity, row 8", "range"),
    "position below 0": (at("exposures", "position", 8, -1), "position, row 8", "whole number"),
    "truth above 1": (all_of("candidates", truth=1.5), "truth, row 1", "range"),
    "unknown stage": (at("candidates", "stage", 3, "final"), "stage, row 3", "unknown name"),
    "request of two users": (at("exposures", "request", 3, "r0u1"), "request, row 3", "two users"),
    "empty table": (no_rows("exposures"), "exposures.parquet", "no rows"),
    "no items": (without("items"), "", "no table `items`"),
    "no exposures": (without("exposures"), "", "no table `exposures`"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str, tmp_path: Path) -> None:
    change, where, what = BAD[case]
    tables = sound_tables()
    change(tables)
    with pytest.raises(DataError) as caught:
        read(write(tmp_path, tables))
    assert where in caught.value.where
    assert what in str(caught.value)
    assert caught.value.must or caught.value.hint


def test_text_of_arrays_is_joined_as_lists_are(tmp_path: Path) -> None:
    tables = sound_tables()
    words = [["red", str(n)] for n in range(7)]
    tables["items"] = tables["items"].with_columns(
        brand=pl.Series(words, dtype=pl.Array(pl.String, 2))
    )
    write(tmp_path, tables)
    data = read(tmp_path, items={"text": ("title", "brand")})
    assert data.catalog.text.tolist()[:2] == ["title 0 red 0", "title 1 red 1"]


def test_columns_without_any_value_are_missing(tmp_path: Path) -> None:
    """Parquet writes a column that is all null without a type of its own."""
    tables = sound_tables()
    nothing = dict.fromkeys(("brand", "price", "tags", "steps", "vector", "image"))
    tables["items"] = tables["items"].with_columns(**nothing)
    tables["exposures"] = tables["exposures"].with_columns(position=None, propensity=None)
    tables["candidates"] = tables["candidates"].with_columns(score=None, truth=None)
    write(tmp_path, tables)
    assert pl.read_parquet_schema(tmp_path / "items.parquet")["price"] == pl.Null
    items = {
        "text": ("title", "brand"),
        "categorical": ("brand",),
        "numeric": ("price",),
        "multi_valued": ("tags",),
        "sequence": ("steps",),
    }
    data = read(tmp_path, items=items)
    assert data.catalog.text[0] == "title 0"
    features = data.catalog.features
    assert np.isnan(features.numeric["price"]).all()
    assert (features.categorical["brand"] == -1).all()
    assert [np.diff(features.lists[n].offsets).sum() for n in ("tags", "steps")] == [0, 0]
    assert np.isnan(data.exposures.propensity).all() and (data.exposures.position == -1).all()
    assert np.isnan(data.candidates.score).all() and np.isnan(data.candidates.truth).all()


@pytest.mark.parametrize("words", [("true", "false"), ("True", "FALSE")])
def test_clicks_in_csv_may_be_booleans(tmp_path: Path, words: tuple[str, str]) -> None:
    tables = sound_tables()
    clicks = tables["exposures"]["click"]
    text = pl.Series("click", [words[0] if click else words[1] for click in clicks])
    tables["exposures"] = tables["exposures"].with_columns(text)
    data = read(write(tmp_path, tables, "csv"))
    assert data.exposures.click.tolist() == clicks.to_list()


@pytest.mark.parametrize(
    ("pattern", "unit"),
    [("%Y%m%d%H", "s"), ("%Y%m%d%H%M", "ms"), ("%Y%m%d%H%M%S", "ms"), ("%Y%m%d%H%M%S%3f", "us")],
)
@pytest.mark.parametrize("kind", [pl.Int64, pl.String])
def test_dates_written_as_digits_are_no_unit(pattern: str, unit: str, kind: Any) -> None:
    moments = pl.datetime_range(
        datetime(2024, 1, 1, 5), datetime(2024, 12, 31), "11h", time_unit="ms", eager=True
    )
    digits = moments.dt.to_string(pattern).cast(kind).alias("time")
    with pytest.raises(DataError, match="unit of the times cannot be inferred") as caught:
        as_time(digits, Path("log.csv"), "auto")
    assert "datetimes" in caught.value.hint
    # Only a number that is no date tells that the others are none: 13 is no month.
    others = pl.Series("time", [1_913_000_000, 1_912_010_100]).cast(kind)
    assert as_time(others, Path("log.csv"), "auto")[0] == 1_913_000_000_000


@pytest.mark.parametrize(
    ("times", "unit"),
    [
        ([2**63 - 1], "ms"),
        ([20_240_501_123_000], "ms"),
        ([1e300], "s"),
        (["9999-12-31"], "auto"),
        ([datetime(2100, 1, 1)], "auto"),
    ],
)
def test_a_time_after_2100_is_a_mistake(times: list[Any], unit: str) -> None:
    values = pl.Series("time", times)
    with pytest.raises(DataError, match="too late") as caught:
        as_time(values, Path("log.parquet"), unit)
    assert "row 1" in caught.value.where and "time_unit" in caught.value.hint


def test_the_last_moment_of_2099_is_read() -> None:
    values = pl.Series("time", [4_102_444_799_999])
    assert as_time(values, Path("log.parquet"), "auto").to_list() == values.to_list()


def test_an_unknown_liked_item(tmp_path: Path) -> None:
    tables = sound_tables()
    tables["interactions"] = pl.DataFrame({"user": ["u1"], "item": [77], "time": [START]})
    with pytest.raises(DataError, match=r"interactions\.parquet -> item, row 1"):
        read(write(tmp_path, tables))


@pytest.mark.parametrize(
    ("column", "value", "what"),
    [("click", "yes", "not a number"), ("time", "noon", "cannot be read"), ("user", "", "empty")],
)
def test_bad_csv_values_are_named(tmp_path: Path, column: str, value: str, what: str) -> None:
    tables = sound_tables()
    tables["items"] = tables["items"].drop("vector")
    text = tables["exposures"].with_columns(pl.all().cast(pl.String))
    row = pl.int_range(pl.len()) == 10
    tables["exposures"] = text.with_columns(
        pl.when(row).then(pl.lit(value)).otherwise(pl.col(column)).alias(column)
    )
    with pytest.raises(DataError, match=rf"exposures\.csv -> {column}, row 11") as caught:
        read(write(tmp_path, tables, "csv"))
    assert what in str(caught.value)


def test_a_truncated_file(tmp_path: Path) -> None:
    file = write(tmp_path, sound_tables()) / "exposures.parquet"
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(DataError, match=r"cannot be read[\s\S]*exposures\.parquet"):
        read(tmp_path)


def test_a_file_that_is_something_else(tmp_path: Path) -> None:
    write(tmp_path, sound_tables())
    (tmp_path / "items.parquet").write_text("not a table")
    with pytest.raises(DataError, match=r"cannot be read[\s\S]*items\.parquet"):
        read(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    write(tmp_path, sound_tables())
    with pytest.raises(DataError, match=r"not there[\s\S]*nowhere\.parquet"):
        read(tmp_path, exposures={"file": "nowhere.parquet"})
    with pytest.raises(DataError, match=r"not there[\s\S]*none-\*"):
        read(tmp_path, exposures={"file": "none-*.parquet"})
    for elsewhere in ("../more/exposures.parquet", "/exposures.parquet"):
        with pytest.raises(ConfigError, match=r"lie elsewhere[\s\S]*below prepare\.path"):
            read(tmp_path, exposures={"file": elsewhere})
    (tmp_path / "hollow").mkdir()
    with pytest.raises(DataError, match="is empty"):
        read(tmp_path, exposures={"file": "hollow"})
    with pytest.raises(DataError, match="folder is not there"):
        read(tmp_path / "absent")


def test_no_path_and_a_bad_mapping(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder given"):
        prepare(PrepareConfig(source="logs"), 0)
    write(tmp_path, sound_tables())
    with pytest.raises(ConfigError, match=r"logs\.exposures\.columns -> clock"):
        read(tmp_path, exposures={"columns": {"clock": "time"}})
    with pytest.raises(DataError, match="`uid` is missing"):
        read(tmp_path, exposures={"columns": {"user": "uid"}})


def test_times_that_run_backwards_where_the_recipe_says_sorted(tmp_path: Path) -> None:
    tables = sound_tables()
    write(tmp_path, tables)
    assert read(tmp_path, exposures={"sorted": True}).time_unit == "ms"
    at("exposures", "time", 6, START - 1)(tables)
    write(tmp_path, tables)
    read(tmp_path)
    with pytest.raises(DataError, match=r"exposures\.parquet -> time, row 6[\s\S]*sorted = true"):
        read(tmp_path, exposures={"sorted": True})


def test_times_after_the_declared_end(tmp_path: Path) -> None:
    write(tmp_path, sound_tables())
    end = datetime.fromtimestamp((START + 8 * DAY) / 1000, UTC).isoformat()
    with pytest.raises(DataError, match=r"after the end of the log[\s\S]*row 37"):
        read(tmp_path, log_end=end)


def test_files_whose_vectors_differ(tmp_path: Path) -> None:
    tables = sound_tables()
    items = tables.pop("items")
    write(tmp_path, tables)
    (tmp_path / "items").mkdir()
    items[:3].write_parquet(tmp_path / "items" / "1.parquet")
    items[3:].drop("vector").write_parquet(tmp_path / "items" / "2.parquet")
    with pytest.raises(DataError, match="differ in their vectors"):
        read(tmp_path)


@pytest.mark.parametrize("table", ["items", "users"])
def test_files_whose_embeddings_differ_in_length(table: str, tmp_path: Path) -> None:
    tables = sound_tables()
    rows = tables.pop(table)
    write(tmp_path, tables)
    (tmp_path / table).mkdir()
    for name, part, width in (("1", rows[:1], 2), ("2", rows[1:], 3)):
        look = pl.Series("look", [[0.5] * width] * len(part))
        part.with_columns(look).write_parquet(tmp_path / table / f"{name}.parquet")
    with pytest.raises(DataError, match="embeddings `look` differ in length") as error:
        read(tmp_path, **{table: {"embedding": ("look",)}})
    assert error.value.where == f"{tmp_path / table / '2.parquet'} -> look"
    assert error.value.must == "2 numbers, as in 1.parquet"
    assert error.value.got == "3 numbers"


ZONE = timezone(timedelta(hours=8))
MOMENT = datetime(2024, 5, 1, 12, 0, 0, 500_000, tzinfo=UTC)
MS = 1_714_564_800_500


@pytest.mark.parametrize(
    ("values", "unit", "expected"),
    [
        ([1_714_564_800], "auto", MS - 500),
        ([1_714_564_800_500], "auto", MS),
        ([1_714_564_800_500_000], "auto", MS),
        ([1_714_564_800_500_000_000], "auto", MS),
        ([1_714_564_800_500_000_000], "ns", MS),
        ([1_714_564_800.5], "auto", MS),
        (["1714564800500"], "auto", MS),
        ([12], "s", 12_000),
        ([12], "ms", 12),
        ([MOMENT], "auto", MS),
        ([MOMENT.astimezone(ZONE)], "auto", MS),
        ([MOMENT.replace(tzinfo=None)], "auto", MS),
        ([MOMENT.date()], "auto", 1_714_521_600_000),
        (["2024-05-01T12:00:00.500Z"], "auto", MS),
        (["2024-05-01 20:00:00.5+08:00"], "auto", MS),
        (["2024-05-01T20:00:00.5+08"], "auto", MS),
        (["2024-05-01T12:00:00"], "auto", MS - 500),
        (["2024-05-01 12:00"], "auto", MS - 500),
        (["2024-05-01"], "auto", 1_714_521_600_000),
    ],
)
def test_times_are_read_as_utc_milliseconds(values: list[Any], unit: str, expected: int) -> None:
    found = as_time(pl.Series("time", values), Path("log"), unit)
    assert found.dtype == pl.Int64
    assert found.to_list() == [expected]


@pytest.mark.parametrize(
    ("values", "row"),
    [
        (["2024-05-01", "2024-05-02", "1714564800"], 3),
        (["1714564800", "2024-05-01", "1714564801"], 2),
        (["1714564800", None, "2024-05-01"], 1),  # one of each: the number
    ],
)
def test_of_mixed_times_the_odd_one_is_named(values: list[str | None], row: int) -> None:
    with pytest.raises(DataError, match="other rows") as caught:
        as_time(pl.Series("time", values), Path("log"), "auto")
    assert caught.value.where == f"log -> time, row {row}"


def test_float32_holds_no_moments() -> None:
    """At 1.7e9 its step is 128 s."""
    with pytest.raises(DataError, match="wrong type"):
        as_time(pl.Series("time", [1.7e9], dtype=pl.Float32), Path("log"), "s")


def test_rows_of_a_table_in_several_files_are_named_by_their_own(tmp_path: Path) -> None:
    tables = sound_tables()
    for name, column in (("items", "item"), ("exposures", "request")):
        folder = tmp_path / f"logs-{name}"
        folder.mkdir()
        write(folder, tables)
        rows = pl.read_parquet(folder / f"{name}.parquet")
        twice = (
            rows[:1] if name == "items" else rows[:1].with_columns(user=pl.lit(rows["user"][-1]))
        )
        (folder / f"{name}.parquet").unlink()
        (folder / name).mkdir()
        rows.write_parquet(folder / name / "a.parquet")
        pl.concat([rows[:0], twice]).write_parquet(folder / name / "b.parquet")
        with pytest.raises(DataError, match=rf"{name}/b\.parquet -> {column}, row 1\n"):
            read(folder)


def test_a_missing_time_is_no_other_kind_of_time() -> None:
    with pytest.raises(DataError, match="a time is missing") as caught:
        as_time(pl.Series("time", ["1714564800", None, None]), Path("log"), "auto")
    assert "row 2" in caught.value.where


def test_a_packed_table_is_found_by_its_name(tmp_path: Path) -> None:
    tables = sound_tables()
    tables["items"] = tables["items"].drop("vector")
    write(tmp_path, tables, "csv")
    plain = read(tmp_path)
    for name in ("exposures", "candidates"):
        file = tmp_path / f"{name}.csv"
        (tmp_path / f"{name}.csv.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    packed = read(tmp_path)
    assert len(packed.candidates) == len(plain.candidates) > 0
    assert packed.exposures.item.tolist() == plain.exposures.item.tolist()


@pytest.mark.parametrize("suffix", [".CSV", ".csv.gz"])
def test_packed_and_loudly_named_csv(tmp_path: Path, suffix: str) -> None:
    data = f"a,b\n{suffix},2\n".encode()
    (tmp_path / f"x{suffix}").write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    assert read_frame(tmp_path / f"x{suffix}")["a"].to_list() == [suffix]


@pytest.mark.parametrize("values", [[5], [99_999_999, 1_714_564_800], [10**16, 10**18]])
def test_times_of_an_unclear_unit_must_be_declared(values: list[int]) -> None:
    with pytest.raises(DataError, match="cannot be inferred"):
        as_time(pl.Series("time", values), Path("log"), "auto")


def test_frequent_keeps_the_most_frequent_and_breaks_ties_by_text() -> None:
    values = pl.Series("brand", ["b", "a", "c", "c", None, "b", "a", "d"])
    assert frequent(values, min_count=2).to_list() == ["b", "a", "c", "c", None, "b", "a", None]
    assert frequent(values, max_values=1).to_list() == [
        None,
        "a",
        None,
        None,
        None,
        None,
        "a",
        None,
    ]


def test_lists_sequences_and_embeddings_are_read(tmp_path: Path) -> None:
    tables = sound_tables()
    tags = [["x", "y", "x"], ["y"], None, [], ["z", None, ""], ["y"], ["x"]]
    words = ["b a", " b", "", None, "c", "a b a", "b"]
    tables["items"] = tables["items"].with_columns(
        pl.Series("tags", tags), pl.Series("words", words)
    )
    chosen = {"multi_valued": ("tags",), "sequence": ("words",), "embedding": ("vector",)}
    items = {**chosen, "separator": " ", "max_categories": 2}
    features = read(write(tmp_path, tables), items=items).catalog.features
    # The two most frequent stay: y (3), x (2 lists, 3 times); b (4), a (3). Repeats of a set go.
    assert features.categories == {"tags": ("x", "y"), "words": ("a", "b")}
    found = {
        name: [part.tolist() for part in np.split(lists.codes, lists.offsets[1:-1])]
        for name, lists in features.lists.items()
    }
    assert found["tags"] == [[0, 1], [1], [], [], [], [1], [0]]
    assert found["words"] == [[1, 0], [1], [], [], [], [0, 1, 0], [1]]
    assert features.vectors["vector"].tolist() == [[float(n), 1.0] for n in range(7)]


def test_a_list_column_of_the_wrong_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column `price` has the wrong type"):
        read(write(tmp_path, sound_tables()), items={"multi_valued": ("price",)})
    with pytest.raises(DataError, match=r"column `tags` is missing"):
        read(tmp_path, items={"sequence": ("tags",)})


# ---- vectors and images of items --------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        pl.List(pl.Float32),
        pl.List(pl.Float16),
        pl.List(pl.Int8),
        pl.Array(pl.Float16, 2),
        pl.Array(pl.Int8, 2),
    ],
    ids=str,
)
def test_vectors_of_any_number_type(kind: Any, tmp_path: Path) -> None:
    tables = sound_tables()
    rows = [[n, -2 * n] if n != 3 else None for n in range(7)]
    tables["items"] = tables["items"].with_columns(vector=pl.Series(rows, dtype=kind))
    vectors = read(write(tmp_path, tables)).catalog.vectors
    assert vectors is not None and vectors.dtype == np.float32
    assert vectors[6].tolist() == [6, -12]
    assert np.isnan(vectors[3]).all()


def test_al_grs_layout_base64_text_in_a_csv_under_its_own_names(tmp_path: Path) -> None:
    """Item-EMB: base62_string, feature = base64 of 512 little-endian float32."""
    golden = np.random.default_rng(0).standard_normal((7, 512)).astype("<f4")
    tables = sound_tables()
    text = [base64.b64encode(row.tobytes()).decode() for row in golden]
    text[2] = ""
    write(tmp_path, tables)
    frame = tables["items"].select(base62_string="item", feature=pl.Series(text))
    (tmp_path / "items.parquet").unlink()
    frame.write_csv(tmp_path / "items.csv")
    columns = {"item": "base62_string", "vector": "feature"}
    data = read(tmp_path, items={"columns": columns})
    assert data.catalog.vectors is not None
    np.testing.assert_array_equal(data.catalog.vectors[3], golden[3])
    assert np.isnan(data.catalog.vectors[2]).all()


@pytest.mark.parametrize("bad", ["AAAA", "AAAAAA==", "no base64!"])
def test_base64_of_something_else(bad: str, tmp_path: Path) -> None:
    """Three bytes, one number where others have two, no base64 at all."""
    tables = sound_tables()
    text = [base64.b64encode(np.ones(2, "<f4").tobytes()).decode()] * 6 + [bad]
    tables["items"] = tables["items"].with_columns(vector=pl.Series(text))
    with pytest.raises(DataError, match="row 7"):
        read(write(tmp_path, tables))


def test_images_are_paths_or_uris_relative_to_the_logs(tmp_path: Path) -> None:
    tables = sound_tables()
    given = ["a.png", "sub/b.png", "/abs/c.png", "file:///d.png", "https://x/e.png", None, " "]
    tables["items"] = tables["items"].with_columns(image=pl.Series(given))
    image = read(write(tmp_path, tables)).catalog.image
    assert image is not None
    root = tmp_path.resolve()
    inside = [f"{root}/a.png", f"{root}/sub/b.png"]
    assert image.tolist() == [*inside, *given[2:5], "", ""]


@pytest.mark.parametrize("name", ["candidates", "interactions"])
def test_a_time_beside_exposures_without_one_is_refused(tmp_path: Path, name: str) -> None:
    tables = sound_tables()
    tables["interactions"] = tables["candidates"].select("user", "item", "time")
    for other in {"candidates", "interactions"} - {name}:
        tables[other] = tables[other].drop("time")
    tables["exposures"] = tables["exposures"].rename({"time": "ts"})
    with pytest.raises(DataError, match="the exposures have none") as error:
        read(write(tmp_path, tables))
    assert f"{name}.parquet -> time" in error.value.where and "logs.exposures" in error.value.hint


def test_settings_of_a_table_that_is_not_there_are_refused(tmp_path: Path) -> None:
    write(tmp_path, sound_tables())
    with pytest.raises(DataError, match="no table `interactions`, of which the recipe says more"):
        read(tmp_path, interactions={"sorted": True})


def test_a_table_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path, sound_tables())
    sound_tables()["exposures"].write_csv(tmp_path / "exposures.csv")
    with pytest.raises(DataError, match="stands there twice") as error:
        read(tmp_path)
    assert "exposures.parquet, exposures.csv" in str(error.value.got)


def test_files_in_folders_of_a_tables_folder_are_refused_or_named(tmp_path: Path) -> None:
    exposures = sound_tables().pop("exposures")
    write(tmp_path, {name: of for name, of in sound_tables().items() if name != "exposures"})
    for place, rows in (("a", exposures[:20]), ("day=2/b", exposures[20:])):
        file = tmp_path / "exposures" / f"{place}.parquet"
        file.parent.mkdir(exist_ok=True)
        rows.write_parquet(file)
    with pytest.raises(DataError, match="files in folders of its own") as error:
        read(tmp_path)
    assert 'file = "exposures/**/*.parquet"' in error.value.hint
    assert len(read(tmp_path, exposures={"file": "exposures/**/*.parquet"}).exposures) == 40
    assert len(read(tmp_path, exposures={"file": "exposures/day=[2]/?.parquet"}).exposures) == 20


def test_a_feature_named_twice_is_refused() -> None:
    items = {"categorical": ("brand", "brand")}
    with pytest.raises(ConfigError, match="names a column twice"):
        PrepareConfig.parse({"source": "logs", "logs": {"items": items}})


@pytest.mark.parametrize("stages", [[], ["recalled", "recalled"], ["recalled", ""]])
def test_stages_are_distinct_names(stages: list[str]) -> None:
    with pytest.raises(ConfigError, match="stages"):
        LogsConfig.parse({"stages": stages}, where="prepare.logs")
