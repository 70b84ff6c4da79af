"""Logs in chunks: complaints name the same row as without, and cuts are the same moments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from prerank.artifacts import Dataset, TimeArray
from prerank.data.config import PrepareConfig
from prerank.data.parted import Moments, is_large, prepare_parts
from prerank.data.prepare import prepare
from prerank.errors import DataError
from prerank.store import load

START, ROWS, PART_ROWS = 1_700_000_000_000, 60, 20


def sound() -> pl.DataFrame:
    """60 exposures of 6 users, in time order, one request a row."""
    n = np.arange(ROWS)
    return pl.DataFrame(
        {
            "request": n,
            "user": [f"u{k}" for k in n % 6],
            "item": [f"i{k}" for k in n % 5],
            "time": START + n * 1000,
            "click": n % 3 // 2,
        }
    )


def write(folder: Path, rows: pl.DataFrame) -> Path:
    folder.mkdir()
    pl.DataFrame({"item": [f"i{k}" for k in range(5)]}).write_parquet(folder / "items.parquet")
    rows.write_parquet(folder / "exposures.parquet")
    return folder


def config_of(folder: Path, more: dict[str, object] | None = None) -> PrepareConfig:
    split = {"method": "given"} if more and "split" in more else {}
    logs = {"exposures": {"sorted": True}}
    return PrepareConfig.parse(
        {"source": "logs", "path": str(folder), "logs": logs, "split": split}
    )


def set_at(column: str, row: int, value: object) -> Callable[[pl.DataFrame], pl.DataFrame]:
    def change(rows: pl.DataFrame) -> pl.DataFrame:
        values = rows[column].to_list()
        values[row] = value
        return rows.with_columns(pl.Series(column, values))

    return change


BREAKS = {
    "unknown item": set_at("item", 33, "i9"),
    "empty user": set_at("user", 41, ""),
    "null user": set_at("user", 20, None),
    "odd click": set_at("click", 25, 7),
    "negative time": set_at("time", 45, -5),
    "null time": set_at("time", 59, None),
    "falls inside a chunk": set_at("time", 30, START + 29_500 - 1_000),
    "falls between chunks": set_at("time", 40, START + 38_500),
    "mixed units": set_at("time", 50, 1_700_000_000),
    "no unit": lambda rows: rows.with_columns(time=pl.col("time") - START),
    "a time after 2100": set_at("time", 59, 4_200_000_000_000),
    "dates written as digits": lambda rows: rows.with_columns(
        time=2024050100 + pl.col("request") // 10
    ),
    "times of two kinds": lambda rows: rows.with_columns(
        time=pl.when(pl.col("request") < 40)
        .then(pl.from_epoch("time", time_unit="ms").dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
        .otherwise(pl.col("time").cast(pl.String))
    ),
    "request of two users": set_at("request", 44, 3),
    "no user column": lambda rows: rows.drop("user"),
    "users are floats": lambda rows: rows.with_columns(user=pl.lit(1.5)),
    "users are lists": lambda rows: rows.with_columns(user=pl.lit([1, 2])),
    "no click": lambda rows: rows.with_columns(click=0),
    "no click in training": lambda rows: rows.with_columns(
        click=(pl.col("request") > 55).cast(pl.Int8)
    ),
    "no click known in test": lambda rows: rows.with_columns(
        click=pl.when(pl.col("request") < 45).then(pl.col("click"))
    ),
    "every click unknown": lambda rows: rows.drop("click"),
    "no rows": lambda rows: rows[:0],
    "a user of a whole page of text": set_at("user", 21, "u" * 5000),
    "NUL in an item": set_at("item", 47, "i3\0"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_complaints_are_those_of_the_whole(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "logs", BREAKS[name](sound()))
    config = config_of(folder)
    with pytest.raises(DataError) as whole:
        prepare(config, 0)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError) as parts:
        prepare_parts(config, folder, 0, tmp_path / "out", tmp_path, PART_ROWS)
    assert str(parts.value) == str(whole.value)


def test_times_of_two_kinds_are_refused_whatever_the_unit(tmp_path: Path) -> None:
    folder = write(tmp_path / "logs", BREAKS["times of two kinds"](sound()))
    config = config_of(folder)
    config = config.model_copy(update={"logs": config.logs.model_copy(update={"time_unit": "ms"})})
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="as those of the other rows") as whole:
        prepare(config, 0)
    with pytest.raises(DataError) as parts:
        prepare_parts(config, folder, 0, tmp_path / "out", tmp_path, PART_ROWS)
    assert str(parts.value) == str(whole.value)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "logs", sound())
    file = folder / "exposures.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:40] + bytes(30) + whole[70:])
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="cannot be read") as error:
        prepare_parts(config_of(folder), folder, 0, tmp_path / "out", tmp_path, PART_ROWS)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("text", [False, True])
def test_a_given_split_and_times_as_text(tmp_path: Path, text: bool) -> None:
    rows = sound().with_columns(
        split=pl.Series(["train"] * 40 + ["validation"] * 10 + ["test"] * 10)
    )
    if text:
        rows = rows.with_columns(
            time=pl.from_epoch("time", time_unit="ms").dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
            request=pl.format("r{}", "request"),
        )
    folder = write(tmp_path / "logs", rows)
    config, out = config_of(folder, {"split": "given"}), tmp_path / "out"
    out.mkdir()
    prepare_parts(config, folder, 0, out, tmp_path, PART_ROWS)
    assert load(out, Dataset).cuts == prepare(config, 0).cuts


def both_ways(tmp_path: Path, folder: Path, config: PrepareConfig) -> tuple[Dataset, Dataset]:
    (tmp_path / "out").mkdir()
    prepare_parts(config, folder, 0, tmp_path / "out", tmp_path, PART_ROWS)
    return load(tmp_path / "out", Dataset), prepare(config, 0)


def test_a_given_split_without_a_test_is_refused(tmp_path: Path) -> None:
    rows = sound().with_columns(split=pl.lit("train"))
    folder = write(tmp_path / "logs", rows)
    config = config_of(folder, {"split": "given"})
    with pytest.raises(DataError, match="no test exposures") as whole:
        prepare(config, 0)
    with pytest.raises(DataError) as parts:
        both_ways(tmp_path, folder, config)
    assert str(parts.value) == str(whole.value)


def test_files_of_one_table_that_differ_in_columns(tmp_path: Path) -> None:
    folder = write(tmp_path / "logs", sound())
    (folder / "exposures.parquet").unlink()
    (folder / "exposures").mkdir()
    sound()[:30].write_parquet(folder / "exposures" / "1.parquet")
    late = sound()[30:].with_columns(position=1)
    late.write_parquet(folder / "exposures" / "2.parquet")
    config = config_of(folder)
    with pytest.raises(DataError, match="differ in their columns") as whole:
        prepare(config, 0)
    assert "2.parquet" in str(whole.value) and "position in one of" in str(whole.value)
    with pytest.raises(DataError) as parts:
        both_ways(tmp_path, folder, config)
    assert str(parts.value) == str(whole.value)
    unknown = sound()[:30].with_columns(position=pl.lit(None, pl.Int64))
    unknown.write_parquet(folder / "exposures" / "1.parquet")
    assert (prepare(config, 0).exposures.position == -1).sum() == 30


def test_request_ids_that_no_int64_holds(tmp_path: Path) -> None:
    wide = sound().with_columns(request=pl.col("request").cast(pl.UInt64) + 2**63)
    folder = write(tmp_path / "logs", wide)
    parts, whole = both_ways(tmp_path, folder, config_of(folder))
    assert len(np.unique(parts.exposures.request)) == len(np.unique(whole.exposures.request)) == 60


def test_candidates_alone_may_name_requests(tmp_path: Path) -> None:
    folder = write(tmp_path / "logs", sound().drop("request"))
    asked = sound()[:30].select("request", "user", "item", "time")
    asked.write_parquet(folder / "candidates.parquet")
    parts, whole = both_ways(tmp_path, folder, config_of(folder))
    rows = [
        sorted(zip(one.user.tolist(), one.item.tolist(), one.time.tolist(), strict=True))
        for one in (parts.candidates, whole.candidates)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 30


def test_large_means_more_rows_than_a_part(tmp_path: Path) -> None:
    folder = write(tmp_path / "logs", sound())
    config = config_of(folder)
    assert is_large(folder, config, ROWS - 1)
    assert not is_large(folder, config, ROWS)
    assert not is_large(tmp_path / "absent", config, 1)
    other = write(tmp_path / "untimed", sound().drop("time"))
    assert not is_large(other, config_of(other), 1)  # a log without time is split at random


@pytest.mark.parametrize("span", [1, 7, 1 << 21, 1 << 45])
def test_order_statistics_by_counting(span: int) -> None:
    rng = np.random.default_rng(span)
    time = rng.integers(START, START + span, 500)

    def chunks() -> Iterator[TimeArray]:
        yield from (time[:0], time[:200], time[200:])

    found, ordered = Moments(chunks), np.sort(time)
    assert len(found) == 500
    assert [found.at(k) for k in range(0, 500, 9)] == ordered[::9].tolist()
    for moment in (START, int(ordered[250]), START + span):
        assert found.below(moment) == int((time < moment).sum())
