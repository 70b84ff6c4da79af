"""RecFlow: exposures and the videos that every stage of a real funnel dropped."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from prerank.data.assemble import Logs
from prerank.data.config import RecFlowConfig
from prerank.data.tables import read_frame
from prerank.errors import DataError

STAGES = ("recalled", "prerank", "rank", "rerank", "exposed")
# The deepest stage that a flag proves: what pre-ranking dropped was recalled only, and so on.
FLAGS = {
    "coarse_neg": 1,
    "rank_neg": 2,
    "rank_pos": 2,
    "rerank_neg": 3,
    "rerank_pos": 3,
    "realshow": 4,
}
CATEGORIES = ("author_id", "category_level_one", "category_level_two", "upload_type")
USER_COLUMNS = ("age", "gender", "province")
KEYS = ("request_id", "request_timestamp", "user_id", "video_id")


def read_recflow(path: Path, config: RecFlowConfig) -> Logs:
    """Read the daily feather files of ``realshow`` (exposures) and ``all_stage`` (candidates).

    The pickled side files are never opened. A video's and a user's side information is that of
    the first row that names it.
    """
    shown = _days(path / "realshow", (*KEYS, *CATEGORIES, "duration", *USER_COLUMNS, config.label))
    offered = _days(
        path / "all_stage", (*KEYS, *CATEGORIES, "duration", *USER_COLUMNS, "prerank_neg", *FLAGS)
    )
    stage = pl.max_horizontal([pl.col(flag).cast(pl.Int8) * code for flag, code in FLAGS.items()])
    keys = (
        pl.col("request_id").alias("request"),
        pl.col("user_id").alias("user"),
        pl.col("video_id").alias("item"),
        _milliseconds(shown).alias("time"),
    )
    side = [*CATEGORIES, "duration", *USER_COLUMNS]
    both = pl.concat(
        [frame.select("user_id", "video_id", *side) for frame in (shown, offered)],
        how="vertical_relaxed",
    )
    return Logs(
        name="recflow",
        time_unit="ms",
        items=_items(both),
        users=_users(both),
        exposures=shown.select(*keys, pl.col(config.label).cast(pl.Int8).alias("click")),
        candidates=offered.select(*keys, stage.cast(pl.Int8).alias("stage")),
        stages=STAGES,
        notes=(
            f"a click is `{config.label}`",
            "no text: videos are described by tokens of author, categories, upload type, duration",
            "every stage was sampled by the publisher: candidates are a sample of the funnel",
        ),
    )


def _milliseconds(shown: pl.DataFrame) -> pl.Expr:
    """Return request_timestamp in ms; the unit is told by its size."""
    top = shown["request_timestamp"].max()
    scale = 1000 if isinstance(top, int) and top < 10**11 else 1
    return pl.col("request_timestamp").cast(pl.Int64) * scale


def _days(folder: Path, columns: tuple[str, ...]) -> pl.DataFrame:
    files = sorted(folder.glob("*.feather"))
    if not files:
        raise DataError("there are no feather files", where=str(folder), must="daily *.feather")
    return pl.concat([read_frame(file, columns) for file in files], how="vertical_relaxed")


def _items(both: pl.DataFrame) -> pl.DataFrame:
    rows = both.unique("video_id", keep="first", maintain_order=True)
    seconds = pl.col("duration").cast(pl.Float64) / 1000
    tokens = [pl.format(f"{name}_{{}}", name) for name in CATEGORIES]
    length = pl.format("duration_{}", (seconds + 1).log(2).floor().cast(pl.Int64))
    return rows.select(
        pl.col("video_id").alias("item"),
        pl.format("video {}", "video_id").alias("title"),
        pl.concat_str([*tokens, length], separator=" ", ignore_nulls=True).alias("text"),
        *(pl.col(name).cast(pl.String).alias(f"c:{name}") for name in CATEGORIES[1:]),
        seconds.log1p().alias("n:log_duration"),
    )


def _users(both: pl.DataFrame) -> pl.DataFrame:
    rows = both.unique("user_id", keep="first", maintain_order=True)
    features = [pl.col(name).cast(pl.String).alias(f"c:{name}") for name in USER_COLUMNS]
    return rows.select(pl.col("user_id").alias("user"), *features)
