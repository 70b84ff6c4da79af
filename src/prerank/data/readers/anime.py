"""MyAnimeList funnels: a simulated cascade over real labels, truth known on the unexposed side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from prerank.artifacts import TEST, TRAIN, VALIDATION
from prerank.data.assemble import Logs
from prerank.data.config import AnimeConfig
from prerank.data.tables import read_frame
from prerank.seeds import rng

PERIODS = {"unexposed_dev": VALIDATION, "unexposed_test": TEST}
POOL_SIZE = 15


def read_anime(path: Path, config: AnimeConfig, seed: int) -> Logs:
    """Read the click or the rating funnel; there is no time, histories are sets.

    Train on the exposed rows but for a seeded share held out for calibration; the candidates are
    all rows of a user with their truth; the unexposed rows are the pools, by user.
    """
    file, label = ("click_funnel", "click") if config.funnel == "click" else ("funnel", "like")
    columns = ["user_id", "item_id", label, "split"]
    rows = read_frame(path / f"{file}.parquet", columns).filter(pl.col("split") != "unused")
    rows = rows.rename({"user_id": "user", "item_id": "item", label: "click"})
    rows = rows.with_columns(request=pl.col("user").cast(pl.Int64))
    shown = pl.col("split") == "exposed"
    exposures = rows.filter(shown)
    held = rng(seed, "anime", "validation").permutation(len(exposures))
    split = np.full(len(exposures), TRAIN, dtype=np.int8)
    split[held[: round(len(exposures) * config.validation_fraction)]] = VALIDATION
    pools = {"unexposed": _with_period(rows.filter(~shown))}
    if config.funnel == "rating":
        pools[f"liked-{POOL_SIZE - 1}"] = _small_pools(path)
    return Logs(
        name=f"anime-{config.funnel}",
        time_unit="none",
        items=_items(path),
        exposures=exposures.with_columns(split=pl.Series(split)),
        candidates=rows.select(
            "request",
            "user",
            "item",
            stage=shown.cast(pl.Int8),
            truth=pl.col("click").cast(pl.Float32),
        ),
        pools=pools,
        sampled_pools=(),
        stages=("recalled", "exposed"),
        notes=_notes(config),
    )


def _notes(config: AnimeConfig) -> tuple[str, ...]:
    truth = (
        "closed world: a title the user did not watch counts as not clicked"
        if config.funnel == "click"
        else "a click is a rating of 8 or more; candidates are the titles the user chose to rate"
    )
    return (
        "no time: histories are sets of the exposed and clicked titles of training",
        "exposure was simulated by a popularity-heavy policy; labels are real",
        truth,
        f"{config.validation_fraction:g} of the exposed rows are held out as validation, at random",
        "tune on the unexposed pool of validation users, report on that of test users",
        "the unexposed pairs of all users are candidates: methods train, without the truth, on the "
        "very pairs that they are judged on (and true-labels with it)",
    )


def _items(path: Path) -> pl.DataFrame:
    names = ["item_id", "title", "genres", "type", "episodes"]
    words = pl.concat_str("title", "genres", "type", separator=" ", ignore_nulls=True)
    return read_frame(path / "items.parquet", names).select(
        pl.col("item_id").alias("item"),
        pl.col("title"),
        words.alias("text"),
        pl.col("type").alias("c:type"),
        pl.col("episodes").cast(pl.Float64).log1p().alias("n:log_episodes"),
    )


def _with_period(rows: pl.DataFrame) -> pl.DataFrame:
    period = pl.col("split").replace_strict(PERIODS, return_dtype=pl.Int8)
    return rows.select("request", "user", "item", "click", period.alias("split"))


def _small_pools(path: Path) -> pl.DataFrame:
    """Return the pools of one liked and fourteen not liked titles, a request each."""
    rows = read_frame(path / "pools.parquet", ["pool", "user_id", "item_id", "is_pos", "split"])
    return _with_period(
        rows.select(
            pl.col("pool").cast(pl.Int64).alias("request"),
            pl.col("user_id").alias("user"),
            pl.col("item_id").alias("item"),
            pl.col("is_pos").cast(pl.Int8).alias("click"),
            pl.col("split"),
        )
    )
