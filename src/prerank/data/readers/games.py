"""Amazon Video Games as prepared by LLMRank: positives in order, seven recall channels."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from prerank.artifacts import TEST, TRAIN, VALIDATION
from prerank.data.assemble import Logs
from prerank.data.config import GamesConfig, PoolsConfig
from prerank.data.simulated import Negatives
from prerank.data.tables import read_frame


def read_games(path: Path, config: GamesConfig, pools: PoolsConfig) -> Logs:
    """Read ``items``, ``sequences`` and ``recall``; time is the position in a user's sequence.

    History = all but the last two items, validation = the second last, test = the last.
    Exposed negatives do not exist and are simulated. Pools: the test (validation) item beside
    sampled items, and what the recall channels returned for the last item, together and one by
    one, for the users whose last item was recalled. These lists are no training candidates: they
    were made for the test request.
    """
    titles = read_frame(path / "items.parquet", ["item_id", "title"])
    items = titles.select(item="item_id", title="title", text="title")
    events = _events(path)
    train = pl.col("split") == TRAIN
    shown = events.filter(~train | (pl.col("time") >= config.min_history))
    recalled = _recalled(path, events)
    union = recalled.unique("pair", keep="first", maintain_order=True)
    names = (f"uniform-{pools.n_negatives}", f"popular-{pools.n_negatives}")
    return Logs(
        name="games",
        time_unit="order",
        items=items,
        exposures=shown.with_columns(request=pl.int_range(pl.len())),
        negatives=Negatives(config.negatives_per_positive, config.negative_power),
        interactions=events.filter(train).select("user", "item", "time"),
        clicks_are_interactions=False,
        pools=_recall_pools(recalled, union),
        exposed_pool=False,
        sampled_pools=names,
        notes=(
            "time is the position in the user's sequence",
            "the recall channels were made for the last item of each user "
            f"({recalled['user'].n_unique()} of {events['user'].n_unique()} users): they are "
            "pools, and no training candidates",
            _shares(recalled),
        ),
    )


def _events(path: Path) -> pl.DataFrame:
    """Return ``user``, ``item``, ``time`` (position) and ``split`` of every event."""
    sequences = read_frame(path / "sequences.parquet", ["user_id", "item_ids"])
    length = pl.col("item_ids").list.len().cast(pl.Int64)
    long = sequences.filter(length >= 3).select(
        user="user_id",
        item="item_ids",
        time=pl.int_ranges(0, length),
        left=pl.int_ranges(length - 1, -1, -1),
    )
    split = pl.when(pl.col("left") == 0).then(TEST).when(pl.col("left") == 1).then(VALIDATION)
    return long.explode("item", "time", "left").select(
        "user", "item", "time", split=split.otherwise(TRAIN).cast(pl.Int8)
    )


def _recalled(path: Path, events: pl.DataFrame) -> pl.DataFrame:
    """Return channel, user, item, time, click and pair number of every recalled item."""
    lists = read_frame(path / "recall.parquet", ["user_id", "channel", "item_ids"])
    last = events.filter(pl.col("split") == TEST).select("user", "time", target="item")
    rows = lists.sort("user_id", "channel").select("channel", user="user_id", item="item_ids")
    joined = rows.join(last, on="user", how="inner", maintain_order="left").explode("item")
    return joined.select(
        "channel",
        "user",
        "item",
        "time",
        click=(pl.col("item") == pl.col("target")).cast(pl.Int8),
        pair=pl.col("user").cast(pl.Int64) * 2**32 + pl.col("item"),
    )


def _recall_pools(recalled: pl.DataFrame, union: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Return the pools ``recalled`` and ``recalled/<channel>``: lists that hold the target."""
    columns = (
        pl.col("user").cast(pl.Int64).alias("request"),
        pl.col("user", "item", "time", "click"),
        pl.lit(TEST, pl.Int8).alias("split"),
    )
    lists = {"recalled": union}
    for channel in recalled["channel"].unique().sort():
        lists[f"recalled/{channel}"] = recalled.filter(pl.col("channel") == channel)
    pools = {}
    for name, rows in lists.items():
        found = rows.filter(pl.col("click") == 1)["user"].implode()
        pools[name] = rows.filter(pl.col("user").is_in(found)).sort("pair").select(columns)
    return pools


def _shares(recalled: pl.DataFrame) -> str:
    n = recalled["user"].n_unique()
    hits = recalled.filter(pl.col("click") == 1)
    found = dict(hits.group_by("channel").agg(pl.col("user").n_unique()).sort("channel").rows())
    parts = [f"{channel} {count / n:.3f}" for channel, count in found.items()]
    return (
        f"share of users whose test item was recalled: {', '.join(parts)}, "
        f"any {hits['user'].n_unique() / n:.3f}; the recalled pools hold those users only"
    )
