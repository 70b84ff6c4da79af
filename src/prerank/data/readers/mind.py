"""MIND: news impressions with request ids, a history of clicks, and titles and abstracts."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from prerank.artifacts import Cuts
from prerank.data.assemble import Logs
from prerank.data.tables import complain, no_repeats
from prerank.errors import DataError

BEHAVIORS = ("impression", "user", "time", "history", "impressions")
NEWS = ("item", "category", "subcategory", "title", "abstract", "url", "entities", "mentions")
TIME_FORMAT = "%m/%d/%Y %I:%M:%S %p"
STEP_MS = 1000


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
    rows = pl.concat([_behaviors(folder / "behaviors.tsv") for folder in folders])
    items = pl.concat([_news(folder / "news.tsv") for folder in folders])
    items = items.unique("item", keep="first", maintain_order=True)
    late = pl.col("folder").str.contains("(?i)dev|valid")
    start = rows.filter(late)["time"].min()
    before = rows.filter(~late)["time"].max()
    ordered = isinstance(start, int) and isinstance(before, int) and before < start
    return Logs(
        name="mind",
        time_unit="ms",
        items=items,
        exposures=_exposures(rows, path),
        interactions=_history(rows),
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
    folder = file.parent.name
    request = pl.lit(f"{folder}/") + pl.col("impression")
    return rows.with_columns(
        time.dt.epoch("ms").alias("time"), request.alias("request"), pl.lit(folder).alias("folder")
    )


def _news(file: Path) -> pl.DataFrame:
    rows = _lines(file, NEWS)
    no_repeats(rows["item"], file, "a news id")
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


def _exposures(rows: pl.DataFrame, path: Path) -> pl.DataFrame:
    shown = rows.select(
        "request",
        "user",
        "time",
        entry=pl.col("impressions").str.strip_chars().str.split(" "),
    )
    shown = shown.with_columns(position=pl.int_ranges(pl.col("entry").list.len().cast(pl.Int64)))
    shown = shown.explode("entry", "position")
    answer = pl.col("entry").str.extract(r"-([^-]*)$").alias("answer")
    shown = shown.with_columns(item=pl.col("entry").str.replace(r"-[01]$", ""), answer=answer)
    complain(
        shown["entry"],
        ~shown["answer"].is_in(["0", "1"]) & shown["answer"].is_not_null(),
        "an impression cannot be read",
        path / "behaviors.tsv",
        "N123-1, N123-0 or N123",
    )
    return shown.select(
        "request", "user", "item", "time", "position", click=pl.col("answer").cast(pl.Int8)
    )


def _history(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the clicks of each user's first history column, before the log's first impression."""
    first = rows.sort("user", "time").unique("user", keep="first", maintain_order=True)
    lists = first.filter(pl.col("history").is_not_null()).select(
        "user", item=pl.col("history").str.strip_chars().str.split(" ")
    )
    age = pl.int_ranges(pl.col("item").list.len().cast(pl.Int64), 0, -1)
    flat = lists.with_columns(age=age).explode("item", "age")
    return flat.select("user", "item", time=pl.lit(rows["time"].min()) - pl.col("age") * STEP_MS)
