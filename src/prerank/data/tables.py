"""Reading tables of unknown quality: every complaint names file, column, row and value.

Rows are counted from 1, without the header. CSV columns are read as text and parsed here, so that
a bad value is named with its row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from prerank.artifacts import FloatArray
from prerank.errors import DataError, first_line

# From 1973 on, each range holds the moments of one unit only.
UNIT_RANGES = {"s": (1e8, 1e11), "ms": (1e11, 1e14), "us": (1e14, 1e17), "ns": (1e17, 1e20)}
ROW = "row in the file"
PACKED = (".gz", ".zst")
ID_LENGTH = 512
END_OF_INT32 = 2.0**31
SEPARATORS = {".csv": ",", ".tsv": "\t"}
TEXT = (pl.String, pl.Categorical, pl.Enum)
NO_TEXT = (pl.Binary, pl.Duration)
TO_MS = {"s": 1000.0, "ms": 1.0, "us": 0.001, "ns": 0.000_001}
YEAR_2100 = 4_102_444_800_000
# yyyymmddHH, yyyymmddHHMM, yyyymmddHHMMSS, and with milliseconds: no count since 1970.
DATE_DIGITS = (
    r"^(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])"
    r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\d{3})?)?)?$"
)
HOURS_ALONE = r"(:\d\d(?:\.\d+)?[+-]\d\d)$"
MIXED = "a time cannot be read as those of the other rows are"
TIME_FORMATS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
ZONED_FORMATS = ("%Y-%m-%d %H:%M:%S%.f%z", "%Y-%m-%d %H:%M%z")


@dataclass(frozen=True)
class Rows:
    """Rows of a file from ``first`` on: where a table lies that was read in chunks."""

    file: Path
    first: int = 0

    def __str__(self) -> str:
        return str(self.file)

    def place(self, row: int) -> tuple[Path, int]:
        """Return the file and its row behind a row that was read."""
        return self.file, self.first + row


@dataclass(frozen=True)
class Files:
    """The rows of several files, one file after the other.

    Attributes:
        files: of a table.
    """

    files: tuple[Path, ...]

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """How many each holds; counted when asked for, as few complaints are made."""
        counts = (scan_file(file).select(pl.len()).collect().item() for file in self.files)
        return tuple(map(int, counts))

    def __str__(self) -> str:
        return str(self.files[0].parent if len(self.files) > 1 else self.files[0])

    def place(self, row: int) -> tuple[Path, int]:
        """Return the file and its row behind a row of all."""
        ends = np.cumsum(self.rows)
        number = int(np.searchsorted(ends, row, side="right"))
        return self.files[number], row - int(ends[number] - self.rows[number])


Where = Path | Rows | Files


def _kind(file: Path) -> str:
    """Return a file's suffix; of a packed CSV, which polars unpacks by itself, that of the CSV."""
    plain = file.with_suffix("") if file.suffix.lower() in PACKED else file
    return plain.suffix.lower()


def scan_file(file: Path) -> pl.LazyFrame:
    """Return a file as a query; the columns of CSV, plain or packed, are text.

    Raises:
        DataError: the file is missing, or a header names a column twice.
    """
    if not file.is_file():
        raise DataError("the file is not there", where=str(file), hint="check `prepare.path`")
    suffix = _kind(file)
    if suffix in (".feather", ".arrow", ".ipc"):
        return pl.scan_ipc(file)
    separator = SEPARATORS.get(suffix)
    if separator is None:
        return pl.scan_parquet(file)
    _require_distinct_header(file, separator)
    return pl.scan_csv(file, separator=separator, infer_schema=False)


def _require_distinct_header(file: Path, separator: str) -> None:
    """Raise DataError where a CSV file names a column twice: polars renames the second one."""
    about: dict[str, Any] = {"separator": separator, "infer_schema": False, "has_header": False}
    names = pl.scan_csv(file, n_rows=1, **about).collect().row(0)
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise DataError(
            f"column `{twice[0]}` stands in the header twice",
            where=f"{file} -> {twice[0]}",
            must="each name once",
            hint="rename or drop one of the two",
        )


def _require_whole_rows(file: Path, frame: pl.DataFrame, first: int) -> None:
    """Raise DataError at a row of a CSV file with fewer fields than the header.

    Polars fills it up with nulls, which would pass for values that are not known. Lines are taken
    for rows, so a file with quotes, where one value may have several lines, is not looked at.

    Args:
        frame: the rows of the file from ``first`` on, all columns.
    """
    if frame.width < 2 or not frame[:, -1].null_count() or _has_quotes(file, file.stat().st_mtime):
        return
    fields = pl.first().str.count_matches(SEPARATORS[_kind(file)], literal=True).fill_null(0) + 1
    found = _lines(file).slice(first, len(frame)).select(n=fields).collect()["n"]
    short = found < frame.width
    if len(found) == len(frame) and short.any():
        row = int(short.arg_max() or 0)
        raise DataError(
            "a row has fewer fields than the header",
            where=f"{file}, row {first + row + 1}",
            must=f"{frame.width} fields",
            got=f"{found[row]} fields, and {short.sum()} such rows in all",
            hint="the file may be cut short; leave a value that is not known empty",
        )


@lru_cache(maxsize=256)
def _has_quotes(file: Path, _changed: float) -> bool:
    found = _lines(file).select(pl.first().str.contains('"', literal=True).any())
    return bool(found.collect(engine="streaming").item())


def _lines(file: Path) -> pl.LazyFrame:
    """Return the lines below the header as a query of one column."""
    return pl.scan_csv(
        file, separator="\x01", quote_char=None, infer_schema=False, truncate_ragged_lines=True
    )


@contextmanager
def sound(file: Path) -> Iterator[None]:
    """Turn what polars says of a damaged file into a DataError."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        raise DataError(
            "the file cannot be read",
            where=str(file),
            must=f"a whole {file.suffix or '.parquet'} file",
            got=first_line(error)[:200],
            hint="the file may be truncated or of another format; write it again",
        ) from None


def read_frame(
    file: Path,
    columns: Sequence[str] = (),
    keys: pl.DataFrame | None = None,
    rows: tuple[int, int] | None = None,
) -> pl.DataFrame:
    """Read a Parquet, Feather or CSV file; only ``columns`` if any are named.

    With ``rows`` only those from the first on: (first, how many). With ``keys`` only rows whose
    values in the columns of ``keys`` stand there, in the file's order; the rest of a large file
    never is in memory, and no row at all is legal.

    Raises:
        DataError: the file is missing, unreadable, empty, or lacks a column; a header names one
            twice, or a row of CSV has fewer fields than the header.
    """
    with sound(file):
        lazy = scan_file(file)
        present = lazy.collect_schema().names()
        missing = [name for name in columns if name not in present]
        if missing:
            raise DataError(
                f"column `{missing[0]}` is missing",
                where=f"{file} -> {missing[0]}",
                must=f"columns {', '.join(dict.fromkeys(columns))}",
                got=", ".join(present),
                hint='map your column names in the recipe: `columns = {ours = "yours"}`',
            )
        chosen = lazy.select(columns) if columns else lazy
        chosen = chosen.slice(*rows) if rows else chosen
        if keys is not None:
            numbered = chosen.with_row_index(ROW)
            found = numbered.join(keys.lazy(), on=keys.columns, how="semi")
            return found.collect(engine="streaming").sort(ROW).drop(ROW)
        frame = chosen.collect()
        if _kind(file) in SEPARATORS and not columns:
            _require_whole_rows(file, frame, rows[0] if rows else 0)
    if not len(frame):
        raise DataError("the table has no rows", where=str(file), must="at least one row")
    return frame


def complain(
    values: pl.Series, bad: pl.Series, what: str, where: Where, must: str, hint: str = ""
) -> None:
    """Raise DataError naming the first row where ``bad`` is true; do nothing if there is none."""
    n = int(bad.sum() or 0)
    if not n:
        return
    row = int(bad.fill_null(False).arg_max() or 0)
    value = values[row]
    shown = "null" if value is None else repr(value)[:80]
    file, row = (where, row) if isinstance(where, Path) else where.place(row)
    raise DataError(
        what,
        where=f"{file} -> {values.name}, row {row + 1}",
        must=must,
        got=shown if n == 1 else f"{shown} (and {n - 1} more such rows)",
        hint=hint,
    )


def wrong_type(values: pl.Series, file: Where, must: str, hint: str = "") -> DataError:
    """Return the error for a column of a type that cannot be read."""
    return DataError(
        f"column `{values.name}` has the wrong type",
        where=f"{file} -> {values.name}",
        must=must,
        got=str(values.dtype),
        hint=hint,
    )


def as_ids(values: pl.Series, file: Where) -> pl.Series:
    """Read ids: text or integers, never null or empty, of `ID_LENGTH` at most. Returns text."""
    if not (values.dtype.is_integer() or values.dtype in TEXT):
        raise wrong_type(values, file, "text or integers", "cast the ids to text")
    text = values.cast(pl.String)
    complain(values, text.is_null() | (text == ""), "an id is empty", file, "an id in every row")
    if values.dtype in TEXT:
        # Kept at one width, so one long id would cost its length for each of the others.
        odd = (text.str.len_chars() > ID_LENGTH) | text.str.contains("\0", literal=True)
        must = f"at most {ID_LENGTH} characters, none of them NUL"
        complain(values, odd, "a text that is no id", file, must)
    return text


def as_text(values: pl.Series, file: Where, hint: str = "") -> pl.Series:
    """Read one text a row, or what can be written as one: numbers, dates ... Null stays null."""
    if values.dtype.is_nested() or values.dtype in NO_TEXT:
        raise wrong_type(values, file, "one text or number a row", hint)
    return values.cast(pl.String)


def as_text_lists(values: pl.Series, file: Where) -> pl.Series:
    """Read lists or arrays of what `as_text` reads. Returns lists of text."""
    inner = values.dtype.inner if isinstance(values.dtype, pl.List | pl.Array) else None
    if inner is None or inner.is_nested() or inner in NO_TEXT:
        raise wrong_type(values, file, "lists of text or numbers")
    return values.cast(pl.List(inner)).cast(pl.List(pl.String))


def as_numbers(values: pl.Series, file: Where) -> pl.Series:
    """Read numbers; null and NaN mean missing, infinity is an error. Returns float64.

    Numbers are kept as float32 later, so one that is infinite there is an error here, where its
    row is known. A column that is all null has no other type in Parquet: every number is missing.
    """
    if not (values.dtype.is_numeric() or values.dtype in (pl.String, pl.Boolean, pl.Null)):
        raise wrong_type(values, file, "numbers")
    numbers = values.cast(pl.Float64, strict=False)
    complain(
        values, numbers.is_null() & values.is_not_null(), "not a number", file, "a number or null"
    )
    complain(values, numbers.is_infinite(), "an infinite number", file, "finite or null")
    complain(
        values,
        numbers.cast(pl.Float32).is_infinite(),
        "a number is too large",
        file,
        "within float32, up to 3.4e38, or null",
    )
    return numbers.fill_nan(None)


def as_whole(values: pl.Series, file: Where) -> pl.Series:
    """Read whole numbers from 0; null means unknown. Returns int64."""
    numbers = as_numbers(values, file)
    bad = (numbers < 0) | (numbers != numbers.floor()) | (numbers >= END_OF_INT32)
    complain(values, bad, "not a whole number from 0", file, "0, 1, 2 ... below 2 ** 31, or null")
    return numbers.cast(pl.Int64)


def as_click(values: pl.Series, file: Where) -> pl.Series:
    """Read clicks: 1, 0, true, false, or null = unknown. Returns int8 with nulls."""
    digits = values
    if values.dtype == pl.String:
        digits = values.str.replace("(?i)^true$", "1").str.replace("(?i)^false$", "0")
    numbers = as_numbers(digits, file)
    complain(
        values,
        ~numbers.is_in([0.0, 1.0]) & numbers.is_not_null(),
        "click is neither 1, 0 nor null",
        file,
        "1 clicked, 0 seen and not clicked, null unknown",
    )
    return numbers.cast(pl.Int8)


def as_probability(values: pl.Series, file: Where) -> pl.Series:
    """Read propensities in (0, 1]; null means unknown. Returns float64."""
    numbers = as_numbers(values, file)
    # A positive number below 1e-45 is 0 as float32, the type that propensities are kept in.
    bad = (numbers.cast(pl.Float32) <= 0) | (numbers > 1)
    must = "in (0, 1] as float32, or null if unknown"
    complain(values, bad, "a propensity is out of range", file, must)
    return numbers


def as_share(values: pl.Series, file: Where) -> pl.Series:
    """Read numbers in [0, 1]; null means unknown. Returns float64."""
    numbers = as_numbers(values, file)
    complain(values, (numbers < 0) | (numbers > 1), "a share is out of range", file, "in [0, 1]")
    return numbers


def as_time(values: pl.Series, file: Where, unit: str) -> pl.Series:
    """Read times as UTC milliseconds, int64.

    Integers (and text of integers) are in ``unit``: s, ms, us, ns, or auto = seconds if all lie in
    [1e8, 1e11), milliseconds if all lie in [1e11, 1e14), microseconds in [1e14, 1e17), nanoseconds
    in [1e17, 1e20). Text is ISO 8601; datetimes and text without a zone are UTC. From 2100 on a
    time is an error: it is a date written as digits, or another unit; so is float32, which cannot
    tell the moments of a minute apart.
    """
    must = "an integer, an ISO 8601 text or a datetime, in every row"
    if values.dtype == pl.Date:
        values = values.cast(pl.Datetime("ms"))
    if isinstance(values.dtype, pl.Datetime):
        time = values.dt.epoch("ms")
    elif values.dtype in (pl.Float16, pl.Float32):
        raise wrong_type(values, file, "int64, float64, ISO 8601 texts or datetimes")
    elif values.dtype.is_numeric():
        time = _numeric_time(values, values.cast(pl.Float64), file, unit)
    elif values.dtype == pl.String:
        numbers = values.cast(pl.Float64, strict=False)
        is_number, is_text = numbers.is_not_null(), numbers.is_null() & values.is_not_null()
        if is_number.any():
            # Which rows are the odd ones? The fewer.
            odd = is_text if is_number.sum() > is_text.sum() else is_number & is_text.any()
            complain(values, odd, MIXED, file, must, "write all times of a file alike")
            time = _numeric_time(values, numbers, file, unit)
        else:
            time = _text_time(values)
    else:
        raise wrong_type(values, file, must)
    complain(values, time.is_null(), "a time cannot be read", file, must)
    complain(values, time < 0, "a time is negative", file, "a moment from 1970 on")
    complain(
        values,
        time >= YEAR_2100,
        "a time is too late",
        file,
        "a moment before the year 2100",
        "state the unit of integers with logs.time_unit; write dates as datetimes or ISO 8601",
    )
    return time


def _numeric_time(values: pl.Series, numbers: pl.Series, file: Where, unit: str) -> pl.Series:
    complain(values, numbers.is_null() | numbers.is_nan(), "a time is missing", file, "a moment")
    complain(values, numbers < 0, "a time is negative", file, "a moment from 1970 on")
    if unit == "auto":
        unit = inferred_unit(values) or unit
    if unit == "auto":
        raise DataError(
            "the unit of the times cannot be inferred",
            where=f"{file} -> {values.name}",
            must="all in [1e8, 1e11) (seconds), all in [1e11, 1e14) (milliseconds), [1e14, 1e17) "
            "(micro-) or [1e17, 1e20) (nanoseconds), and no dates written as digits, such as "
            "2024050112",
            got=f"{numbers.to_numpy().min():.0f} .. {numbers.to_numpy().max():.0f}",
            hint='declare it: logs.time_unit = "s", "ms", "us" or "ns"; or write datetimes or '
            "ISO 8601",
        )
    # What is later is refused by `as_time`, and may be past int64.
    return (numbers * TO_MS[unit]).clip(upper_bound=YEAR_2100).round().cast(pl.Int64)


def inferred_unit(values: pl.Series) -> str | None:
    """Return s, ms, us or ns if all ``values`` are numbers that can only be that unit, else None.

    None, too, if all of them read as dates written in digits: 2024050112 is noon of the first of
    May 2024 to whoever wrote it, and as seconds a moment in 2034.
    """
    if not (values.dtype.is_numeric() or values.dtype == pl.String):
        return None
    numbers = values.cast(pl.Float64, strict=False)
    digits = numbers.cast(pl.Int64, strict=False).cast(pl.String)
    if digits.str.contains(DATE_DIGITS).fill_null(False).all():
        return None
    for unit, (low, high) in UNIT_RANGES.items():
        if ((numbers >= low) & (numbers < high)).fill_null(False).all():
            return unit
    return None


def _text_time(values: pl.Series) -> pl.Series:
    text = values.str.strip_chars().str.replace("T", " ", literal=True)
    text = text.str.replace("Z$", "+00:00").str.replace(HOURS_ALONE, "$1:00")
    frame = text.alias("t").to_frame()
    zoned = [pl.col("t").str.to_datetime(f, time_unit="ms", strict=False) for f in ZONED_FORMATS]
    plain = [pl.col("t").str.to_datetime(f, time_unit="ms", strict=False) for f in TIME_FORMATS]
    parsed = [e.dt.epoch("ms") for e in (*zoned, *plain)]
    return frame.select(pl.coalesce(parsed))["t"]


def as_vectors(values: pl.Series, file: Where) -> FloatArray:
    """Read given vectors, (N, D) float32; a null row is missing and becomes NaN.

    Lists or arrays of any numbers (float32, float16, int8 ...), or text: base64 of little-endian
    float32, as AL-GR publishes its 512 dimensions.
    """
    if values.dtype == pl.String:
        values = _from_base64(values, file)
    if values.dtype == pl.Null:
        values = values.cast(pl.List(pl.Float32))
    if not isinstance(values.dtype, pl.List | pl.Array):
        raise wrong_type(values, file, "a list or array of numbers", "vectors need Parquet")
    inner = values.dtype.inner
    if inner is None or not inner.is_numeric():
        raise wrong_type(values, file, "a list or array of numbers")
    lists = values.cast(pl.List(pl.Float32)) if isinstance(values.dtype, pl.Array) else values
    length = lists.list.len()
    known = length.drop_nulls()
    dim = int(known[0]) if len(known) else 0
    complain(
        length.alias(values.name),
        (length != dim) | (length == 0),
        "a vector has another length",
        file,
        f"{dim} numbers, as in the first row" if dim else "at least one number",
    )
    flat = lists.drop_nulls().explode().cast(pl.Float32).to_numpy().reshape(len(known), dim)
    here = values.is_not_null().to_numpy()
    vectors = np.full((len(values), dim), np.nan, dtype=np.float32)
    vectors[here] = flat
    bad = here & ~np.isfinite(vectors).all(axis=1)
    complain(
        values,
        pl.Series(bad),
        "a vector holds NaN or infinity",
        file,
        "finite numbers; leave the whole vector null where it is missing",
    )
    return vectors


def as_lists(values: pl.Series, file: Where, separator: str) -> pl.Series:
    """Read several values a row: lists, or text cut at ``separator``. Returns lists of text.

    Empty and null values are dropped; a row without any is an empty list.
    """
    if isinstance(values.dtype, pl.List | pl.Array):
        inner = values.dtype.inner
        if inner is None or inner.is_float():
            raise wrong_type(values, file, "lists of text or integers")
        lists = as_text_lists(values, file)
    elif values.dtype.is_integer() or values.dtype in (*TEXT, pl.Null):
        lists = values.cast(pl.String).str.split(separator)
    else:
        raise wrong_type(values, file, f"lists, or text with `{separator}` between values")
    frame = lists.alias("v").to_frame()
    element = pl.element().str.strip_chars()
    kept = pl.col("v").list.eval(element.filter(element.is_not_null() & (element != "")))
    return frame.select(kept.fill_null([]))["v"].alias(values.name)


def frequent_lists(values: pl.Series, *, max_values: int, unique: bool) -> pl.Series:
    """Drop rare values from lists of text, and repeats if ``unique``; order is kept.

    Args:
        values: a list of text a row, none of them null.
        max_values: keep the most frequent values (ties: smaller text first).
        unique: a value stands in a list once.
    """
    every = values.explode(empty_as_null=True).drop_nulls().alias("v")
    counted = every.value_counts(name="n").sort(["n", "v"], descending=[True, False])
    kept = counted["v"].head(max_values)
    element = pl.element().filter(pl.element().is_in(kept.implode()))
    element = element.unique(maintain_order=True) if unique else element
    frame = values.alias("v").to_frame()
    return frame.select(pl.col("v").list.eval(element))["v"].alias(values.name)


def _from_base64(values: pl.Series, file: Where) -> pl.Series:
    """Return vectors written as base64 of float32 as a column of arrays; empty text is null."""
    values = values.str.strip_chars().replace("", None)
    raw = values.str.decode("base64", strict=False)
    size = raw.bin.size()
    bad = (raw.is_null() | (size % 4 != 0) | (size == 0)) & values.is_not_null()
    complain(
        values, bad, "a vector is not base64 of float32", file, "base64 text, 4 bytes a number"
    )
    known = size.drop_nulls()
    same = int(known[0]) if len(known) else 0
    complain(size.alias(values.name), size != same, "a vector has another length", file, str(same))
    flat = np.frombuffer(b"".join(raw.drop_nulls().to_list()), dtype="<f4")
    dim = same // 4
    vectors = pl.Series(flat.reshape(-1, dim) if dim else flat, dtype=pl.Array(pl.Float32, dim))
    row = (values.is_not_null().cum_sum() - 1).cast(pl.UInt32)
    return vectors.gather(row.set(values.is_null(), None)).alias(values.name)


def no_repeats(ids: pl.Series, file: Where, what: str) -> None:
    """Raise DataError at the first id that stands there a second time."""
    complain(
        ids,
        ~ids.is_first_distinct(),
        f"{what} stands in the table twice",
        file,
        "one row an id",
        "keep one row of each",
    )


def frequent(values: pl.Series, *, min_count: int = 1, max_values: int = 10_000) -> pl.Series:
    """Return a category as text with its rare values set to null.

    Args:
        values: one value a row.
        min_count: keep values that stand in at least so many rows.
        max_values: of those, keep the most frequent (ties: smaller text first).
    """
    text = values.cast(pl.String)
    counted = text.drop_nulls().value_counts(name="n").filter(pl.col("n") >= min_count)
    kept = counted.sort(["n", values.name], descending=[True, False])[values.name].head(max_values)
    return text.set(~text.is_in(kept.implode()), None)
