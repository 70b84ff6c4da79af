"""KuaiRand-Pure, standard log: real impressions with true negatives; tags instead of text."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from prerank.artifacts import Cuts
from prerank.data.assemble import Logs
from prerank.data.config import KuaiRandConfig
from prerank.data.tables import frequent, read_frame
from prerank.errors import DataError

DAY_MS = 86_400_000
ZONE_MS = 8 * 3_600_000  # the platform's days are UTC+8
STEP_MS = 60_000


def read_kuairand(path: Path, config: KuaiRandConfig) -> Logs:
    """Read ``exposures``, ``histories``, ``items`` and ``users``; whole days are split off.

    The earlier histories carry only the time of their last video, so the others are placed a
    minute apart before it. Anchors see these histories only.
    """
    shown = _exposures(path, config)
    first = int(shown["time"].min())  # type: ignore[arg-type]
    histories, n_overlapping, shown = _histories(path, config, first, shown)
    end = (int(shown["time"].max()) + ZONE_MS) // DAY_MS + 1  # type: ignore[arg-type]
    test = (end - config.test_days) * DAY_MS - ZONE_MS
    return Logs(
        name="kuairand",
        time_unit="ms",
        items=_items(path, config),
        users=_users(path),
        exposures=shown,
        interactions=histories,
        cuts=Cuts(anchors=first, validation=test - config.validation_days * DAY_MS, test=test),
        notes=(
            f"a click is `{config.label}`; a request is one user's day (UTC+8)",
            f"earlier interactions are `{config.history}` videos; only the time of a user's last "
            "one is known, the others are placed a minute apart before it",
            f"{n_overlapping} exposures at or before the user's last history moment were left out",
            "no text: items are described by tokens of tag, author, type, upload, music, duration",
            "no candidates were logged",
        ),
    )


def _exposures(path: Path, config: KuaiRandConfig) -> pl.DataFrame:
    rows = read_frame(path / "exposures.parquet", ["user_id", "video_id", "time_ms", config.label])
    day = (pl.col("time_ms") + ZONE_MS) // DAY_MS
    return rows.select(
        user="user_id",
        item="video_id",
        time="time_ms",
        click=pl.col(config.label).cast(pl.Int8),
        request=pl.col("user_id") * 100_000 + day,
    )


def _histories(
    path: Path, config: KuaiRandConfig, first: int, shown: pl.DataFrame
) -> tuple[pl.DataFrame, int, pl.DataFrame]:
    """Return the earlier interactions, and the exposures that lie after them."""
    column = "long_watch_seq" if config.history == "long_view" else "watch_seq"
    rows = read_frame(path / "histories.parquet", ["user_id", column, "last_time_ms"])
    last = rows.select(user="user_id", last="last_time_ms")
    joined = shown.join(last, on="user", how="left", maintain_order="left")
    later = joined.filter(pl.col("time") > pl.col("last").fill_null(-1)).drop("last")
    if not len(later):
        raise DataError("no exposure lies after the histories", where=str(path))
    age = pl.int_ranges(pl.col(column).list.len().cast(pl.Int64) - 1, -1, -1)
    placed = rows.filter(pl.col(column).list.len() > 0).select(
        user="user_id",
        item=column,
        age=age,
        last=pl.min_horizontal("last_time_ms", pl.lit(first - 1)),
    )
    interactions = placed.explode("item", "age").select(
        "user", "item", time=pl.col("last") - pl.col("age") * STEP_MS
    )
    return interactions, len(shown) - len(later), later


def _items(path: Path, config: KuaiRandConfig) -> pl.DataFrame:
    names = ["video_id", "author_id", "video_type", "upload_type", "video_duration", "music_id"]
    rows = read_frame(path / "items.parquet", [*names, "music_type", "tag"])
    tags = pl.col("tag").str.split(",").list.eval(pl.lit("tag_") + pl.element()).list.join(" ")
    seconds = pl.col("video_duration") / 1000
    tokens = (
        tags,
        pl.format("author_{}", "author_id"),
        pl.format("type_{}", "video_type"),
        pl.format("upload_{}", "upload_type"),
        pl.format("music_{}", "music_id"),
        pl.format("duration_{}", (seconds + 1).log(2).floor().cast(pl.Int64)),
    )
    return rows.select(
        pl.col("video_id").alias("item"),
        pl.format("video {}", "video_id").alias("title"),
        pl.concat_str(tokens, separator=" ", ignore_nulls=True).alias("text"),
        frequent(rows["author_id"], min_count=config.min_author_items).alias("c:author"),
        pl.col("video_type").alias("c:video_type"),
        pl.col("upload_type").alias("c:upload_type"),
        pl.col("tag").str.split(",").list.first().alias("c:tag"),
        pl.col("music_type").cast(pl.Int64).cast(pl.String).alias("c:music_type"),
        seconds.log1p().alias("n:log_duration"),
    )


def _users(path: Path) -> pl.DataFrame:
    rows = read_frame(path / "users.parquet")
    if "user_id" not in rows.columns:
        raise DataError("column `user_id` is missing", where=f"{path / 'users.parquet'} -> user_id")
    kept = [c for c in rows.columns if c.endswith("_range") or c.startswith("onehot_feat")]
    kept += [c for c in ("user_active_degree", "is_live_streamer", "is_video_author") if c in rows]
    features = [frequent(rows[c], min_count=2).alias(f"c:{c}") for c in sorted(kept)]
    return rows.select(pl.col("user_id").alias("user"), *features)
