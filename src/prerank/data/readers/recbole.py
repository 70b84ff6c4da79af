"""RecBole's atomic files: ``.inter``, ``.item``, ``.user``, tab-separated with typed headers."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from prerank.data.assemble import MULTI_VALUED, Logs
from prerank.data.config import RatingsConfig
from prerank.data.simulated import Negatives
from prerank.data.tables import (
    as_click,
    as_ids,
    as_lists,
    as_numbers,
    as_time,
    complain,
    frequent,
    frequent_lists,
    no_repeats,
)
from prerank.errors import DataError

KINDS = ("token", "token_seq", "float", "float_seq")
MAX_VALUES = 1000  # of a list, the most frequent ones: a description has more words than that
TITLES = ("title", "name", "movie_title", "item_name", "entity_name")


def read_recbole(path: Path, config: RatingsConfig) -> Logs:
    """Read one data set of atomic files.

    A ``label`` column is the click, else ``rating`` from the threshold on. With neither, the log
    holds positives only and exposed negatives are simulated. ``timestamp`` is in seconds.
    """
    file = _only(path, "inter")
    rows, kinds = _read(file)
    for name in ("user_id", "item_id"):
        if name not in rows.columns:
            raise DataError(
                f"column `{name}:token` is missing",
                where=f"{file} -> {name}",
                got=", ".join(f"{k}:{v}" for k, v in kinds.items()),
            )
    events = pl.DataFrame(
        {"user": as_ids(rows["user_id"], file), "item": as_ids(rows["item_id"], file)}
    )
    notes, negatives = [], None
    timed = "timestamp" in rows.columns
    if timed:
        events = events.with_columns(time=as_time(rows["timestamp"], file, "s"))
    items = _side(path, "item")
    if items is None:
        ids = events["item"].unique().sort()
        items = pl.DataFrame({"item": ids, "title": ids, "text": [""] * len(ids)})
        notes.append("no .item file: items have no content")
    complain(
        rows["item_id"],
        ~events["item"].is_in(items["item"].implode()),
        "an interaction names an item that the .item file does not have",
        file,
        "an id of the .item file",
    )
    if "label" in rows.columns:
        exposures = events.with_columns(click=as_click(rows["label"], file))
    elif "rating" in rows.columns:
        click = as_numbers(rows["rating"], file) >= config.threshold
        exposures = events.with_columns(click=click.cast(pl.Int8))
        notes.append(f"a rating is an exposure, one of {config.threshold:g} or more a click")
    else:
        exposures = events.with_columns(request=pl.int_range(pl.len()))
        negatives = Negatives(config.negatives_per_positive, config.negative_power)
    return Logs(
        name=file.stem,
        time_unit="ms" if timed else "none",
        items=items,
        users=_side(path, "user"),
        exposures=exposures,
        negatives=negatives,
        notes=tuple(notes),
    )


def _only(path: Path, suffix: str) -> Path:
    found = sorted(path.glob(f"*.{suffix}"))
    if len(found) != 1:
        raise DataError(
            f"there must be one .{suffix} file",
            where=str(path),
            got=", ".join(f.name for f in found) or "none",
        )
    return found[0]


def _read(file: Path) -> tuple[pl.DataFrame, dict[str, str]]:
    """Return the columns as text under their bare names, and their kinds."""
    try:
        frame = pl.read_csv(file, separator="\t", infer_schema=False, quote_char=None)
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        raise DataError("the file cannot be read", where=str(file), got=error) from None
    if not len(frame):
        raise DataError("the table has no rows", where=str(file), must="at least one row")
    kinds = {}
    for header in frame.columns:
        name, _, kind = header.rpartition(":")
        if not name or kind not in KINDS:
            raise DataError(
                "a header has no type",
                where=f"{file} -> {header}",
                must=f"name:type with type one of {', '.join(KINDS)}",
                got=header,
            )
        if name in kinds:
            raise DataError("a column stands there twice", where=f"{file} -> {name}", got=header)
        kinds[name] = kind
    return frame.rename(dict(zip(frame.columns, kinds, strict=True))), kinds


def _side(path: Path, key: str) -> pl.DataFrame | None:
    """Read the .item or .user file: tokens are categories, floats numbers, sequences of tokens
    lists; sequences of floats are not read.

    Tokens and sequences of an item are its text, too; a title is text alone.
    """
    if not list(path.glob(f"*.{key}")):
        return None
    file = _only(path, key)
    rows, kinds = _read(file)
    if f"{key}_id" not in rows.columns:
        raise DataError(f"column `{key}_id:token` is missing", where=f"{file} -> {key}_id")
    ids = as_ids(rows[f"{key}_id"], file)
    no_repeats(ids, file, f"a {key} id")
    named = {name: kind for name, kind in kinds.items() if name != f"{key}_id"}
    columns = {key: ids}
    if key == "item":
        title = next((name for name in TITLES if name in named), None)
        words = [name for name, kind in named.items() if kind in ("token", "token_seq")]
        columns["title"] = rows[title].fill_null("") if title else ids
        text = pl.concat_str(words or [pl.lit("")], separator=" ", ignore_nulls=True)
        columns["text"] = rows.select(text.alias("text"))["text"]
    for name, kind in named.items():
        if kind == "token" and name not in TITLES:
            columns[f"c:{name}"] = frequent(rows[name], min_count=2)
        elif kind == "float":
            columns[f"n:{name}"] = as_numbers(rows[name], file)
        elif kind == "token_seq" and name not in TITLES:
            columns[f"{MULTI_VALUED}{name}"] = frequent_lists(
                as_lists(rows[name], file, " "), max_values=MAX_VALUES, unique=True
            )
    return pl.DataFrame(columns)
