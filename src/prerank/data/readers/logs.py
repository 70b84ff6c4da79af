"""Own logs: up to five tables in Parquet or CSV, under any column names.

The schema is docs/reference/log-schema.md. Every wrong row is named by file, column and row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from prerank.artifacts import FloatArray
from prerank.data.assemble import MULTI_VALUED, SEQUENCE, VECTOR, Logs
from prerank.data.config import (
    FeatureTableConfig,
    ItemTableConfig,
    LogsConfig,
    SplitConfig,
    TableConfig,
)
from prerank.data.split import moment_ms
from prerank.data.tables import (
    Files,
    Where,
    as_click,
    as_ids,
    as_lists,
    as_numbers,
    as_probability,
    as_share,
    as_text,
    as_text_lists,
    as_time,
    as_vectors,
    as_whole,
    complain,
    frequent,
    frequent_lists,
    inferred_unit,
    no_repeats,
    read_frame,
    wrong_type,
)
from prerank.errors import ConfigError, DataError
from prerank.store import is_inside

Parser = Callable[[pl.Series, Where], pl.Series]
SPLIT_CODES = {"train": 0, "validation": 1, "test": 2}
UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
JOIN_LISTS = "join lists into one text, or name the column in `text`, not as the title"
MOST_ALONE = 0.9
"""From this share of requests to rows on, requests are told to be of one row."""
SUFFIXES = (".parquet", ".csv", ".csv.gz", ".csv.zst", ".feather")
CAST: dict[str, Parser] = {
    "request": as_ids,
    "user": as_ids,
    "item": as_ids,
    "click": as_click,
    "position": as_whole,
    "propensity": as_probability,
    "score": as_numbers,
    "truth": as_share,
}


def read_logs(path: Path, config: LogsConfig, split: SplitConfig) -> Logs:
    """Read the tables below ``path``.

    Times must be in all of exposures, candidates and interactions, or in none of them.

    Raises:
        DataError: naming file, column, row and value of the first thing wrong.
        ConfigError: a column mapping names a column that prerank does not know.
    """
    items, vectors = read_items(path, config.items)
    users = read_users(path, config.users)
    catalog = items["item"]
    notes: list[str] = []
    shown = exposures_table(config, split)
    exposures = _events(path, config, catalog, notes, shown)
    if exposures is None:
        raise no_exposures(path)
    timed = "time" in exposures.columns
    candidates = _events(path, config, catalog, notes, candidates_table(config, timed))
    interactions = _events(path, config, catalog, notes, interactions_table(config, timed))
    files = table_files(path, shown.name, shown.table)
    one_user_a_request(exposures, Files(tuple(files)))
    strangers = 0
    if users is not None:
        known = exposures["user"].unique().is_in(users["user"].implode())
        strangers = int((~known).sum())
    notes += Repeats.of(exposures).notes()
    notes += notes_of(timed, strangers, interactions is not None)
    return Logs(
        name=path.name or "logs",
        time_unit="ms" if timed else "none",
        items=items,
        users=users,
        exposures=exposures,
        candidates=candidates,
        interactions=interactions,
        clicks_are_interactions=interactions is None,
        vectors=vectors,
        stages=config.stages,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class EventTable:
    """A table of events: which of our columns it must and may have."""

    name: str
    table: TableConfig
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def theirs(self, ours: str) -> str:
        """Return how the files call one of our columns."""
        return self.table.columns.get(ours, ours)


def exposures_table(config: LogsConfig, split: SplitConfig) -> EventTable:
    """Return the columns of the exposures."""
    given = ("split",) if split.method == "given" else ()
    optional = ("request", "time", "click", "position", "propensity")
    return EventTable("exposures", config.exposures, ("user", "item", *given), optional)


def candidates_table(config: LogsConfig, timed: bool) -> EventTable:
    """Return the columns of the candidates; ``timed``: the exposures have a time."""
    required = ("user", "item", *(("time",) if timed else ()))
    more = ("request", "stage", "score", "truth")
    return EventTable("candidates", config.candidates, required, more)


def interactions_table(config: LogsConfig, timed: bool) -> EventTable:
    """Return the columns of the interactions; ``timed``: the exposures have a time."""
    required = ("user", "item", *(("time",) if timed else ()))
    return EventTable("interactions", config.interactions, required)


def no_exposures(path: Path) -> DataError:
    """Return the error for a folder without exposures."""
    return DataError(
        "there is no table `exposures`",
        where=str(path),
        must="exposures.parquet, exposures.csv, a folder `exposures`, or logs.exposures.file",
    )


@dataclass(frozen=True)
class Repeats:
    """Rows of exposures that stand twice, and requests; those of parts of the users add up.

    Attributes:
        rows: of exposures.
        repeats: rows that are another one exactly.
        requests: distinct; without time or request, users.
    """

    rows: int = 0
    repeats: int = 0
    requests: int = 0

    @classmethod
    def of(cls, exposures: pl.DataFrame) -> Repeats:
        """Count a table; without a column ``request``, a user's rows of one moment are one."""
        named = [name for name in ("request", "user", "time") if name in exposures.columns]
        keys = ["request"] if "request" in named else named
        return cls(
            rows=len(exposures),
            repeats=len(exposures) - exposures.n_unique(),
            requests=exposures.select(keys).n_unique(),
        )

    def __add__(self, other: Repeats) -> Repeats:
        return Repeats(**{name: n + getattr(other, name) for name, n in vars(self).items()})

    def notes(self) -> list[str]:
        """Return what a reader of results must know of them."""
        found = []
        if self.repeats:
            found.append(f"{self.repeats} exposures repeat another row exactly; each counts")
        if self.requests >= MOST_ALONE * self.rows:
            found.append(
                f"{self.rows} exposures in {self.requests} requests: lists of about one row, of "
                "which HR@k and NDCG say nothing; name a `request` column if the log has one"
            )
        return found


def notes_of(timed: bool, strangers: int, has_interactions: bool) -> list[str]:
    """Return what a reader of results must know of the tables; ``strangers``: see there."""
    found = [] if timed else ["the log has no time"]
    if strangers:
        found.append(f"{strangers} users of the exposures have no features")
    if not has_interactions:
        found.append("interactions are the clicked exposures")
    return found


def table_files(path: Path, name: str, config: TableConfig) -> list[Path]:
    """Return the files of a table in the order of their names; none if it is not there."""
    if config.file:
        if not is_inside(config.file):  # a change of theirs would never be noticed
            raise ConfigError(
                f"the files of table `{name}` lie elsewhere",
                where=f"prepare.logs.{name}.file",
                must="a path below prepare.path",
                got=config.file,
                hint="link there what lies elsewhere",
            )
        target = path / config.file
        found = [target] if target.exists() else sorted(path.glob(config.file))
        if not found or not found[0].exists():
            raise DataError(
                f"the files of table `{name}` are not there",
                where=str(target),
                hint=f"check prepare.path and logs.{name}.file",
            )
    else:
        found = [f for s in (*SUFFIXES, "") if (f := path / f"{name}{s}").exists()]
        if len(found) > 1:
            raise DataError(
                f"the table `{name}` stands there twice",
                where=str(path),
                must="one of them, or logs.*.file",
                got=", ".join(one.name for one in found),
            )
        if not found and config != type(config)():
            raise DataError(
                f"there is no table `{name}`, of which the recipe says more",
                where=str(path),
                must=f"{name}.parquet, {name}.csv, a folder `{name}`, or logs.{name}.file",
                hint=f"name its file, or take [prepare.logs.{name}] out",
            )
    files = []
    for one in found:
        inside = sorted(f for s in SUFFIXES for f in one.glob(f"*{s}")) if one.is_dir() else [one]
        if not inside:
            raise DataError(f"the folder of table `{name}` is empty", where=str(one))
        below = next((f for s in SUFFIXES for f in one.glob(f"*/**/*{s}")), None)
        if below is not None:
            raise DataError(
                f"the folder of table `{name}` has files in folders of its own",
                where=str(below),
                must=f"all files in {one.name} itself",
                hint=f'logs.{name}.file = "{one.name}/**/*{below.suffix}" reads all of them',
            )
        files.extend(inside)
    return files


def raw_rows(file: Path, spec: EventTable, rows: tuple[int, int] | None = None) -> pl.DataFrame:
    """Read one file of events, or some ``rows`` of it; columns keep the file's names."""
    frame = _raw(file, spec.name, spec.table, spec.required, spec.optional, rows)
    if "time" in frame.columns and "time" not in (*spec.required, *spec.optional):
        raise DataError(
            "this table has a time, and the exposures have none",
            where=f"{file} -> time",
            must="a time in all of exposures, candidates and interactions, or in none",
            hint='map it: logs.exposures.columns = {time = "yours"}; or leave it out here',
        )
    return frame


def _raw(
    file: Path,
    name: str,
    config: TableConfig,
    required: Sequence[str],
    optional: Sequence[str],
    rows: tuple[int, int] | None = None,
) -> pl.DataFrame:
    allowed = (*required, *optional)
    strange = [ours for ours in config.columns if ours not in allowed]
    if strange:
        raise ConfigError(
            "unknown column in the mapping",
            where=f"logs.{name}.columns -> {strange[0]}",
            must=", ".join(allowed),
            got=strange[0],
            hint="write it as {our name = your name}",
        )
    frame = read_frame(file, rows=rows)
    wanted = [config.columns.get(ours, ours) for ours in required]
    wanted += list(config.columns.values())
    missing = [theirs for theirs in wanted if theirs not in frame.columns]
    if missing:
        raise DataError(
            f"column `{missing[0]}` is missing",
            where=f"{file} -> {missing[0]}",
            must=f"columns {', '.join(dict.fromkeys(wanted))}",
            got=", ".join(frame.columns),
            hint=f'map your names: logs.{name}.columns = {{ours = "yours"}}',
        )
    return frame


def _column(frame: pl.DataFrame, config: TableConfig, ours: str) -> pl.Series | None:
    theirs = config.columns.get(ours, ours)
    return frame[theirs] if theirs in frame.columns else None


def _events(
    path: Path, config: LogsConfig, catalog: pl.Series, notes: list[str], spec: EventTable
) -> pl.DataFrame | None:
    """Read a table of events; None if it is not there."""
    parts: list[pl.DataFrame] = []
    files = table_files(path, spec.name, spec.table)
    for file in files:
        raw = raw_rows(file, spec)
        columns = event_columns(raw, file, config, spec, config.time_unit)
        if "time" in columns and config.time_unit == "auto":
            notes += unit_notes(file, inferred_unit(raw[spec.theirs("time")]))
        require_items(raw, ~columns["item"].is_in(catalog.implode()), file, spec)
        parts.append(pl.DataFrame(columns))
        require_alike(files[0], parts[0].columns, file, columns)
    return pl.concat(parts) if parts else None


def require_alike(first: Path, names: Iterable[str], file: Path, columns: Iterable[str]) -> None:
    """Raise DataError where a file of a table has other columns than the table's first file."""
    odd = sorted(set(names) ^ set(columns))
    if odd:
        raise DataError(
            "the files of one table differ in their columns",
            where=str(file),
            must=f"the columns of {first.name}",
            got=f"{', '.join(odd)} in one of the two only",
            hint="add the column to each file, empty where it is unknown",
        )


def event_columns(
    raw: pl.DataFrame, where: Where, config: LogsConfig, spec: EventTable, unit: str
) -> dict[str, pl.Series]:
    """Return the columns of a table of events, or of some rows of it, checked one by one.

    Args:
        raw: columns under the file's names.
        where: the file, for complaints.
        config: of the logs.
        spec: the table.
        unit: of integer times: auto, s, ms or us.
    """
    columns = {}
    for ours in (*spec.required, *spec.optional):
        values = _column(raw, spec.table, ours)
        if values is None:
            continue
        if ours == "time":
            columns[ours] = as_time(values, where, unit)
            last = moment_ms(config.log_end, "logs.log_end")
            _check_order(values, columns[ours], where, spec.table.sorted, last)
        elif ours == "stage":
            columns[ours] = _codes(values, where, {n: code for code, n in enumerate(config.stages)})
        elif ours == "split":
            columns[ours] = _codes(values, where, SPLIT_CODES)
        else:
            columns[ours] = CAST[ours](values, where)
    return columns


def unit_notes(file: Path, unit: str | None) -> list[str]:
    """Return the note on a unit of time that was told from the size of the numbers."""
    return [f"{file.name}: times were read as {UNIT_NAMES[unit]}, by size"] if unit else []


def require_items(raw: pl.DataFrame, bad: pl.Series, where: Where, spec: EventTable) -> None:
    """Raise DataError at the first row that is ``bad``: its item is not in the items table."""
    complain(
        raw[spec.theirs("item")],
        bad,
        f"{spec.name} name an item that the items table does not have",
        where,
        "an id of the items table",
        "add the items or drop the rows",
    )


def _check_order(
    values: pl.Series, time: pl.Series, file: Where, claims_order: bool, last: int | None
) -> None:
    if claims_order:
        complain_of_order(values, time.diff() < 0, file)
    if last is not None:
        complain(values, time > last, "a time lies after the end of the log", file, "<= log_end")


def complain_of_order(values: pl.Series, bad: pl.Series, where: Where) -> None:
    """Raise DataError at the first row that is ``bad``: its time lies before the row above."""
    complain(
        values,
        bad,
        "the times run backwards",
        where,
        "not before the row above, as the recipe says `sorted = true`",
        "sort the file by time, or drop `sorted`",
    )


def _codes(values: pl.Series, file: Where, codes: dict[str, int]) -> pl.Series:
    """Return the code of each name, int8."""
    if values.dtype not in (pl.String, pl.Categorical, pl.Enum):
        raise wrong_type(values, file, f"text, one of {', '.join(codes)}")
    text = values.cast(pl.String)
    known = text.is_in(list(codes))
    complain(values, ~known | text.is_null(), "an unknown name", file, ", ".join(codes))
    return text.replace_strict(codes, return_dtype=pl.Int8)


def one_user_a_request(rows: pl.DataFrame, where: Where) -> None:
    """Raise DataError at the first row whose request has another user in an earlier row."""
    if "request" not in rows.columns:
        return
    first = pl.col("user").first().over("request")
    bad = rows.select(bad=pl.col("user") != first)["bad"]
    complain(
        rows["request"],
        bad,
        "a request has two users",
        where,
        "one user a request",
        "make request ids unique, for instance by joining user and request",
    )


def read_items(path: Path, config: ItemTableConfig) -> tuple[pl.DataFrame, FloatArray | None]:
    """Read the items table and the vectors that it gives."""
    frames, vectors = [], []
    files = table_files(path, "items", config)
    for file in files:
        raw = _raw(file, "items", config, ("item",), ("title", "vector", "image"))
        ids = as_ids(raw[config.columns.get("item", "item")], file)
        title = _column(raw, config, "title")
        name = ids if title is None else as_text(title, file, JOIN_LISTS).fill_null("")
        text = [_text(raw, file, c) for c in config.text] or [name]
        joined = pl.DataFrame({str(n): t for n, t in enumerate(text)}).select(
            pl.concat_str(pl.all(), separator=" ", ignore_nulls=True)
        )
        has_content = bool(config.text) or title is not None
        image = _column(raw, config, "image")
        frames.append(
            pl.DataFrame(
                {
                    "item": ids,
                    "title": name,
                    **({} if image is None else {"image": _places(as_text(image, file), path)}),
                    "text": joined.to_series().str.strip_chars()
                    if has_content
                    else [""] * len(raw),
                    **_feature_columns(raw, file, config),
                }
            )
        )
        given = _column(raw, config, "vector")
        if given is not None:
            vectors.append(as_vectors(given, file))
    if not frames:
        raise DataError(
            "there is no table `items`",
            where=str(path),
            must="items.parquet, items.csv, a folder `items`, or logs.items.file",
        )
    _require_one_shape(frames, files)
    items = pl.concat(frames)
    no_repeats(items["item"], Files(tuple(files)), "an item id")
    dims = sorted({v.shape[1] for v in vectors})
    if len(dims) > 1 or 0 < len(vectors) < len(frames):
        raise DataError(
            "the files of the items differ in their vectors",
            where=str(path / (config.file or "items")),
            must="one length in all files",
            got=f"lengths {dims} in {len(vectors)} of {len(frames)} files",
        )
    return _frequent_only(items, config), np.concatenate(vectors) if vectors else None


def _places(values: pl.Series, folder: Path) -> pl.Series:
    """Return paths and URIs of images, empty where null; relative paths start at the logs."""
    given = values.fill_null("").str.strip_chars()
    is_relative = ~given.str.contains(r"^(/|[A-Za-z]:[/\\]|[A-Za-z][A-Za-z0-9+.-]+:)") & (
        given != ""
    )
    inside = pl.lit(f"{folder.resolve()}/")
    frame = pl.DataFrame({"given": given, "relative": is_relative})
    joined = pl.when(pl.col("relative")).then(inside + pl.col("given")).otherwise(pl.col("given"))
    return frame.select(place=joined)["place"]


def read_users(path: Path, config: FeatureTableConfig) -> pl.DataFrame | None:
    """Read the users table; None if it is not there."""
    frames = []
    files = table_files(path, "users", config)
    for file in files:
        raw = _raw(file, "users", config, ("user",), ())
        ids = as_ids(raw[config.columns.get("user", "user")], file)
        frames.append(pl.DataFrame({"user": ids, **_feature_columns(raw, file, config)}))
    if not frames:
        return None
    _require_one_shape(frames, files)
    users = pl.concat(frames)
    no_repeats(users["user"], Files(tuple(files)), "a user id")
    return _frequent_only(users, config)


def _text(raw: pl.DataFrame, file: Path, name: str) -> pl.Series:
    values = _must_have(raw, file, name)
    if isinstance(values.dtype, pl.List | pl.Array):
        return as_text_lists(values, file).list.join(" ")
    return as_text(values, file, "lists of text may be given, too")


def _feature_columns(
    raw: pl.DataFrame, file: Path, config: FeatureTableConfig
) -> dict[str, pl.Series]:
    columns = {}
    for name in config.categorical:
        values = _must_have(raw, file, name)
        is_list = isinstance(values.dtype, pl.List | pl.Array)
        hint = "name it in `multi_valued` instead" if is_list else ""
        columns[f"c:{name}"] = as_text(values, file, hint)
    for name in config.numeric:
        columns[f"n:{name}"] = as_numbers(_must_have(raw, file, name), file)
    for prefix, names in ((MULTI_VALUED, config.multi_valued), (SEQUENCE, config.sequence)):
        for name in names:
            values = _must_have(raw, file, name)
            columns[f"{prefix}{name}"] = as_lists(values, file, config.separator)
    for name in config.embedding:
        vectors = as_vectors(_must_have(raw, file, name), file)
        columns[f"{VECTOR}{name}"] = pl.Series(
            vectors, dtype=pl.Array(pl.Float32, vectors.shape[1])
        )
    return columns


def _require_one_shape(frames: Sequence[pl.DataFrame], files: Sequence[Path]) -> None:
    """Raise DataError where a file's columns or lengths of embeddings are not the first file's."""
    first = frames[0].schema
    for frame, file in zip(frames, files, strict=True):
        require_alike(files[0], first, file, frame.columns)
        for column, dtype in frame.schema.items():
            if column.startswith(VECTOR) and dtype != first[column]:
                name = column.removeprefix(VECTOR)
                raise DataError(
                    f"the embeddings `{name}` differ in length between files",
                    where=f"{file} -> {name}",
                    must=f"{_length(first[column])} numbers, as in {files[0].name}",
                    got=f"{_length(dtype)} numbers",
                )


def _length(dtype: pl.DataType) -> int:
    return dtype.size if isinstance(dtype, pl.Array) else 0


def _must_have(raw: pl.DataFrame, file: Path, name: str) -> pl.Series:
    if name not in raw.columns:
        raise DataError(
            f"column `{name}` is missing",
            where=f"{file} -> {name}",
            must="the feature and text columns of the recipe",
            got=", ".join(raw.columns),
        )
    return raw[name]


def _frequent_only(frame: pl.DataFrame, config: FeatureTableConfig) -> pl.DataFrame:
    names, most = [f"c:{name}" for name in config.categorical], config.max_categories
    single = [frequent(frame[name], max_values=most) for name in names]
    several = [
        frequent_lists(frame[f"{prefix}{name}"], max_values=most, unique=prefix == MULTI_VALUED)
        for prefix, of in ((MULTI_VALUED, config.multi_valued), (SEQUENCE, config.sequence))
        for name in of
    ]
    return frame.with_columns(single + several)
