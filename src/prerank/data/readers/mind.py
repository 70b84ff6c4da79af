"""MIND: news impressions with request ids, a history of clicks, and titles and abstracts."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from prerank.artifacts import Cuts
from prerank.data.assemble import Logs
from prerank.data.tables import as_ids, complain, no_repeats
from prerank.errors import DataError

BEHAVIORS = ("impression", "user", "time", "history", "impressions")
NEWS = ("item", "category", "subcategory", "title", "abstract", "url", "entities", "mentions")
TIME_FORMAT = "%m/%d/%Y %I:%M:%S %p"
STEP_MS = 1000
ANSWER = "-[01]$"


def read_mind(path: Path) -> Logs:
    """Read ``behaviors.tsv`` and ``news.tsv`` of the folder, or of its sub-folders.

    A sub-folder whose name holds ``dev`` or ``valid`` is the test period, if it is later than the
    others. Impressions without an answer (``N1`` instead of ``N1-0``) have an unknown click. The
    clicks of a user's history have no time, but come from before the log: they are placed a second
    apart before its first impression. Before the user's own first impression, the history of a user
    who comes in the test period only would lie in that period, and be left out.
    """
    folders = [path] if (path / "behaviors.tsv").is_file() else []
    folders += sorted(f.parent for f in path.glob("*/behaviors.tsv"))
    if not folders:
        raise DataError("there is no behaviors.tsv", where=str(path), must="MIND's folders")
    files = [folder / "behaviors.tsv" for folder in folders]
    parts = [_behaviors(file) for file in files]
    rows = pl.concat(parts)
    items = pl.concat([_news(folder / "news.tsv") for folder in folders])
    items = items.unique("item", keep="first", maintain_order=True)
    exposures, history = _exposures(rows), _history(rows)
    known = items["item"].implode()
    for column, found in (("impressions", exposures["item"]), ("history", history["item"])):
        # The lines are gone through once more only where one of them is wrong.
        if not found.unique().is_in(known).all():
            unknown = ~pl.element().str.replace(ANSWER, "").is_in(known)
            must = "an id of news.tsv"
            for file, part in zip(files, parts, strict=True):
                _check_entries(part, column, unknown, "an unknown news id", file, must)
    late = pl.col("folder").str.contains("(?i)dev|valid")
    start = rows.filter(late)["time"].min()
    before = rows.filter(~late)["time"].max()
    ordered = isinstance(start, int) and isinstance(before, int) and before < start
    return Logs(
        name="mind",
        time_unit="ms",
        items=items,
        exposures=exposures,
        interactions=history,
        cuts=Cuts(test=start if ordered and isinstance(start, int) else None),
        notes=(
            "clicks of the history column have no time: they are placed a second apart before "
            "the first impression of the log",
            "no candidates were logged beyond the impressions",
        ),
    )


def _lines(file: Path, names: tuple[str, ...]) -> pl.DataFrame:
    if not file.is_file():
        raise DataError("the file is not there", where=str(file), hint="check `prepare.path`")
    try:
        return pl.read_csv(
            file,
            separator="\t",
            has_header=False,
            new_columns=list(names),
            infer_schema=False,
            quote_char=None,
        )
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise DataError(
            "the file cannot be read",
            where=str(file),
            must=f"{len(names)} tab-separated columns",
            got=error,
        ) from None


def _behaviors(file: Path) -> pl.DataFrame:
    rows = _lines(file, BEHAVIORS)
    time = rows["time"].str.to_datetime(TIME_FORMAT, time_unit="ms", strict=False)
    complain(rows["time"], time.is_null(), "a time cannot be read", file, TIME_FORMAT)
    as_ids(rows["user"], file)
    complain(
        rows["impressions"], rows["impressions"].is_null(), "no impression", file, "N123-1 N124-0"
    )
    odd = pl.element().str.contains("-[^-]*$") & ~pl.element().str.contains(ANSWER)
    must = "N123-1, N123-0 or N123"
    _check_entries(rows, "impressions", odd, "an impression cannot be read", file, must)
    folder = file.parent.name
    request = pl.lit(f"{folder}/") + pl.col("impression")
    return rows.with_columns(
        time.dt.epoch("ms").alias("time"), request.alias("request"), pl.lit(folder).alias("folder")
    )


def _entries(column: str) -> pl.Expr:
    """Return the entries of a column of lists, which spaces separate."""
    return pl.col(column).str.strip_chars().str.split(" ")


def _check_entries(
    rows: pl.DataFrame, column: str, bad: pl.Expr, what: str, file: Path, must: str
) -> None:
    """Raise DataError at the first line with an entry for which ``bad``, of an element, is true."""
    found = rows.select(_entries(column).list.eval(pl.element().filter(bad)).list.first())[column]
    complain(found, found.is_not_null(), what, file, must)


def _news(file: Path) -> pl.DataFrame:
    rows = _lines(file, NEWS)
    no_repeats(as_ids(rows["item"], file), file, "a news id")
    words = pl.concat_str(
        "title", "abstract", "category", "subcategory", separator=" ", ignore_nulls=True
    )
    return rows.select(
        pl.col("item"),
        pl.col("title").fill_null(""),
        words.alias("text"),
        pl.col("category").alias("c:category"),
        pl.col("subcategory").alias("c:subcategory"),
    )


def _exposures(rows: pl.DataFrame) -> pl.DataFrame:
    shown = rows.select("request", "user", "time", entry=_entries("impressions"))
    shown = shown.with_columns(position=pl.int_ranges(pl.col("entry").list.len().cast(pl.Int64)))
    return shown.explode("entry", "position").select(
        "request",
        "user",
        "time",
        "position",
        item=pl.col("entry").str.replace(ANSWER, ""),
        click=pl.col("entry").str.extract("-([01])$").cast(pl.Int8),
    )


def _history(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the clicks of each user's first history column, before the log's first impression."""
    first = rows.sort("user", "time").unique("user", keep="first", maintain_order=True)
    lists = first.filter(pl.col("history").is_not_null()).select("user", item=_entries("history"))
    age = pl.int_ranges(pl.col("item").list.len().cast(pl.Int64), 0, -1)
    flat = lists.with_columns(age=age).explode("item", "age")
    return flat.select("user", "item", time=pl.lit(rows["time"].min()) - pl.col("age") * STEP_MS)
