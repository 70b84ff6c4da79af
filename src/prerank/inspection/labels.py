"""Pseudo-labels: what they are in all, some of them as a table, and the same as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from prerank.evaluation import sections
from prerank.evaluation.plots import Plot
from prerank.evaluation.sheets import label_audit_sheets
from prerank.inspection.asked import Download, Labels, RefusedError
from prerank.inspection.opened import OpenedRun
from prerank.inspection.values import (
    PAGE_ROWS,
    item_index,
    item_of,
    moment,
    pager,
    plain,
    user_index,
)

SORTED_ROWS = 10_000
"""How far down a sorted list can be paged; the download has all."""
NEAR_ROWS = 1 << 18
"""A part of the file up to this long is read as it stands."""
NUMBERS = ("label", "confidence", "relevance", "dispersion", "history", "llm")
SHOWN = ("user", "item", "time", *NUMBERS)
ROW = "row"
"""The number of a row in the file."""
FORMULA = r"^[=+\-@\t\r\n＝＋－＠]"
"""A cell that begins so is a formula to a spreadsheet."""


def labels(run: OpenedRun, asked: Labels) -> dict[str, Any]:
    """Return the labels of a method in all, and a page of those asked for."""
    method = run.choose(asked.method, run.labelled, run.config.method)
    if not method:
        raise RefusedError(
            404, "this run has no pseudo-labels", "`prerank label RECIPE` makes them"
        )
    n, rows = _page(run, asked, method)
    page = pager(n, asked.page)
    audit = run.extra.get("audit", {}).get(method)
    return {
        "method": method,
        "methods": list(run.labelled),
        "asked": asked.model_dump(),
        "about": run.described(method),
        "audit": audit,
        "labels": _shown(run, rows),
        **page,
    }


def _page(run: OpenedRun, asked: Labels, method: str) -> tuple[int, pl.DataFrame]:
    """Return how many rows are asked for, and those of the page.

    One pass over the columns that are asked about finds their numbers, then the few rows of the
    page are read.
    """
    frame = run.labels(method).frame
    start, stop = (asked.page - 1) * PAGE_ROWS, asked.page * PAGE_ROWS
    if asked.sort and stop > SORTED_ROWS:
        raise RefusedError(
            422, f"sorted lists can be paged to row {SORTED_ROWS:,}", "download them instead"
        )
    if not asked.sort and not asked.filtered:
        shown = frame.select(*SHOWN).slice(start, PAGE_ROWS)
        return int(run.labels(method).count.sum()), shown.collect()
    found = _filtered(run, asked, method)
    if asked.sort:
        known = found.select(pl.col(asked.sort).fill_nan(None), ROW, "user")
        fit = known.collect(engine="streaming")
        picked = _first(fit, asked.sort, stop, down=asked.order == "highest").select(ROW, "user")
    else:
        picked = fit = found.select(ROW, "user").collect(engine="streaming")
    picked = picked.slice(start, PAGE_ROWS).with_row_index("place")
    return len(fit), _picked(frame, picked)


def _first(fit: pl.DataFrame, by: str, stop: int, *, down: bool) -> pl.DataFrame:
    """Return the first rows by ``by``; equal ones as in the file, unknown ones last."""
    ends = fit[by].top_k(stop) if down else fit[by].bottom_k(stop)
    bar = pl.lit(ends.min() if down else ends.max(), dtype=fit[by].dtype)
    column = pl.col(by)
    best = fit.filter(column > bar if down else column < bar)
    level = fit.filter(column == bar).head(stop - len(best))
    unknown = fit.filter(column.is_null()).head(stop - len(best) - len(level))
    found = pl.concat([best, level, unknown])
    return found.sort([by, ROW], descending=[down, False], nulls_last=True)


def _picked(frame: pl.LazyFrame, picked: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of ``picked`` numbers, in its order.

    Of numbers near each other that part of the file is read; of others the column of users, and the
    rest of the columns where it names one of theirs.
    """
    if not len(picked):
        return frame.select(*SHOWN).head(0).collect()
    first, last = int(picked[ROW].min()), int(picked[ROW].max())  # type: ignore[arg-type]
    if last - first < NEAR_ROWS:
        near = frame.slice(first, last - first + 1).with_row_index(ROW, first)
    else:
        theirs = pl.col("user").is_in(picked["user"].unique().implode())
        near = frame.with_row_index(ROW).filter(theirs)
    near = near.filter(pl.col(ROW).is_in(picked[ROW].implode())).select(ROW, *SHOWN)
    rows = near.collect(engine="streaming")
    return picked.drop("user").join(rows, on=ROW, how="left").sort("place")


def _filtered(run: OpenedRun, asked: Labels, method: str) -> pl.LazyFrame:
    """Return the rows asked for, in the order of the file, with their number in it as `ROW`."""
    table = run.labels(method)
    frame = table.frame.with_row_index(ROW)
    if asked.user:
        who = user_index(run, asked.user)
        if table.offsets is None:
            frame = frame.filter(pl.col("user") == who)
        else:
            start, stop = int(table.offsets[who]), int(table.offsets[who + 1])
            frame = table.frame.slice(start, stop - start).with_row_index(ROW, start)
    if asked.item:
        frame = frame.filter(pl.col("item") == item_index(run, asked.item))
    for name, low_, high_ in (
        ("label", asked.label_min, asked.label_max),
        ("confidence", asked.confidence_min, asked.confidence_max),
    ):
        if low_ is not None:
            frame = frame.filter(pl.col(name) >= low_)
        if high_ is not None:
            frame = frame.filter(pl.col(name) <= high_)
    keep = None
    if asked.title:
        keep = run.titles.str.contains(asked.title.lower(), literal=True).to_numpy()
    if asked.popularity is not None:
        low, high = _part(run, method, "by_popularity", asked.popularity)
        inside = (run.exposures >= low) & (run.exposures <= high)
        keep = inside if keep is None else keep & inside
        frame = frame.filter(pl.col("confidence") > 0)
    if keep is not None:
        kept = pl.Series(np.flatnonzero(keep).astype(np.int32))
        frame = frame.filter(pl.col("item").is_in(kept.implode()))
    if asked.confidence is not None:
        low, high = _part(run, method, "by_confidence", asked.confidence)
        sure = pl.col("confidence").cast(pl.Float64)
        frame = frame.filter((sure > 0) & (sure >= low) & (sure <= high))
    return frame


def _part(run: OpenedRun, method: str, key: str, number: int) -> tuple[float, float]:
    """Return the bounds of a tenth by popularity or a fifth by confidence."""
    parts: Any = run.described(method).get(key, [])
    if number > len(parts):
        raise RefusedError(
            422,
            f"there are only {len(parts)} parts {key.replace('_', ' ')}",
            "equal values share a part, so there may be fewer than ten or five",
        )
    return parts[number - 1]["low"], parts[number - 1]["high"]


def _shown(run: OpenedRun, rows: pl.DataFrame) -> list[dict[str, Any]]:
    data = run.dataset
    user, item = rows["user"].to_numpy(), rows["item"].to_numpy()
    truth = run.truth.look_up(user, item)
    columns = {name: rows[name].to_numpy() for name in NUMBERS}
    times = rows["time"].to_numpy()
    return [
        {
            "user": str(data.users.ids[user[k]]),
            "item": item_of(run, int(item[k])),
            "exposures": int(run.exposures[item[k]]),
            "time": moment(int(times[k]), data.time_unit),
            "truth": plain(truth[k]),
            **{name: plain(values[k]) for name, values in columns.items()},
        }
        for k in range(len(rows))
    ]


def labels_plots(run: OpenedRun, data: dict[str, Any]) -> dict[str, list[Plot]]:
    """Return histogram, reliability and parts of one method's labels, as the report has them."""
    of_method = {data["method"]: data["about"]}
    found = sections.plots_of_labels(of_method)
    if data["audit"]:
        found += sections.plots_of_audits({data["method"]: data["audit"]})
    return {"labels": found}


def audit_sheets_of(data: dict[str, Any]) -> list[Any]:
    """Return the audit as sheets, none where no truth is known."""
    if not data["audit"]:
        return []
    return [one for one in label_audit_sheets(data["method"], data["audit"]) if one.rows]


# ---- the file --------------------------------------------------------------------------------


def file_rows(run: OpenedRun, asked: Download) -> pl.LazyFrame:
    """Return all labels asked for, with ids, titles and the truth where known, to be written.

    In CSV, texts that a spreadsheet would take for a formula get an apostrophe in front.
    """
    method = run.choose(asked.method, run.labelled, run.config.method)
    if not method:
        raise RefusedError(404, "this run has no pseudo-labels", "")
    frame = _filtered(run, asked, method).with_columns(
        _texts(run.dataset.users.ids, "user", "user_id"),
        _texts(run.dataset.items.ids, "item", "item_id"),
        _texts(run.dataset.catalog.title, "item", "title"),
        pl.struct("user", "item")
        .map_batches(_truth(run), return_dtype=pl.Float32, is_elementwise=True)
        .alias("truth"),
    )
    chosen = frame.select("user_id", "item_id", "title", "time", *NUMBERS, "anchor", "truth")
    if asked.sort:
        known = pl.col(asked.sort).fill_nan(None)  # NaN is unknown here, and polars' largest number
        chosen = chosen.sort(known, descending=asked.order == "highest", nulls_last=True)
    if asked.format == "parquet":
        return chosen
    safe = [
        pl.when(pl.col(name).str.contains(FORMULA))
        .then(pl.lit("'") + pl.col(name))
        .otherwise(pl.col(name))
        .alias(name)
        for name in ("user_id", "item_id", "title")
    ]
    return chosen.with_columns(safe)


def write_rows(rows: pl.LazyFrame, asked: Download, path: Path) -> None:
    """Write rows to ``path``; they stream from file to file, so that memory does not grow."""
    if asked.format == "parquet":
        rows.sink_parquet(path)
    else:
        rows.sink_csv(path)


def _texts(values: Any, column: str, name: str) -> pl.Expr:
    def texts(index: pl.Series) -> pl.Series:
        return pl.Series(
            np.asarray(values[index.to_numpy()], dtype=object).tolist(), dtype=pl.String
        )

    made = pl.col(column).map_batches(texts, return_dtype=pl.String, is_elementwise=True)
    return made.alias(name)


def _truth(run: OpenedRun) -> Any:
    def truth(pairs: pl.Series) -> pl.Series:
        parts = pairs.struct
        found = run.truth.look_up(parts.field("user").to_numpy(), parts.field("item").to_numpy())
        return pl.Series(found, dtype=pl.Float32).fill_nan(None)

    return truth
