"""Taobao-MM: samples with clicks, lifelong histories, frozen multimodal vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from prerank.artifacts import TEST, TRAIN, FloatArray
from prerank.data.assemble import Logs
from prerank.data.config import SplitConfig, TaobaoMmConfig
from prerank.data.split import random_split
from prerank.data.tables import as_vectors, no_repeats, read_frame
from prerank.errors import DataError
from prerank.seeds import rng

USER, ITEM, LABEL, HISTORY, VECTOR = "129_1", "205", "label_0", "150_2_180", "205_c"
USER_FEATURES = tuple(f"130_{n}" for n in range(1, 6))
ITEM_FEATURES = ("206", "213", "214")
VECTORS, FEATURES = "scl_embedding_int8_p90.parquet", "item_features.parquet"
NO_ITEM = 0
"""What the publisher writes where a list has no item."""


def read_taobao_mm(path: Path, config: TaobaoMmConfig, split: SplitConfig, seed: int) -> Logs:
    """Read samples, user features, item features and vectors, of some users or of all.

    The data has no time, no request and no unexposed list. Histories are ordered, oldest first,
    so time is the order: history items 0, 1, 2 ..., every sample after the whole history. Users in
    both train and test keep the training history, so nothing of the test period is in it. A share
    of the training users (``split.validation_fraction``) is validation.

    Large tables are filtered while they are scanned: memory holds the rows of the users chosen and
    of the items that they met.
    """
    users = _users_chosen(path, config, seed)
    train, test = _samples(path, "train", users), _samples(path, "test", users)
    profiles = pl.concat([_profiles(path, name, config, users) for name in ("train", "test")])
    profiles = profiles.unique(USER, keep="first", maintain_order=True)
    history, n_dropped = _history(path, profiles, config)
    ends = history.group_by("user").agg(pl.len().cast(pl.Int64).alias("time"))

    codes = train["user"].rank("dense").cast(pl.Int64).to_numpy() - 1
    by_user = random_split(codes, split, rng(seed, "taobao-mm", "split"))
    # The publisher's own test file is the test period; nothing more is taken for it.
    train = train.with_columns(split=pl.Series(np.where(by_user == TEST, TRAIN, by_user)))
    test = test.with_columns(split=pl.lit(TEST, pl.Int8))
    shown = pl.concat([train, test]).join(ends, on="user", how="left", maintain_order="left")
    late = (pl.col("split") == TEST).cast(pl.Int64)
    shown = shown.with_columns(
        time=pl.col("time").fill_null(0) + late,
        request=pl.col("user").cast(pl.String)
        + pl.when(late == 1).then(pl.lit("/t")).otherwise(pl.lit("")),
    )
    items, vectors = _items(path, [shown["item"], history["item"]], config.only_seen_items)
    n_given = int((~np.isnan(vectors[:, 0])).sum())
    both = test["user"].unique().is_in(train["user"].implode()).sum()
    sampled = [f"{len(users)} users were drawn from all"] if users is not None else []
    return Logs(
        name="taobao-mm",
        time_unit="order",
        items=items,
        users=_users(profiles),
        exposures=shown,
        interactions=history,
        clicks_are_interactions=False,
        vectors=vectors,
        notes=(
            "no time in the data: time is the order of a user's history, samples come after it",
            f"{both} users are in train and test; both use the training history",
            "no request in the data: the samples of one user are a request",
            f"{n_given} of {len(items)} items have a vector; the others have no content",
            f"histories are the last {config.history_length} items; {n_dropped} of these were left "
            "out: they have no vector",
            "no unexposed list: candidates must be drawn from a stated proposal distribution",
            *sampled,
        ),
    )


def _users_chosen(path: Path, config: TaobaoMmConfig, seed: int) -> pl.DataFrame | None:
    """Return the users to read, one column; None for all."""
    if not config.max_users:
        return None
    files = [path / f"{name}_samples.parquet" for name in ("train", "test")]
    known = pl.concat([read_frame(file, [USER]).unique() for file in files]).unique().sort(USER)
    n_users = min(config.max_users, len(known))
    rows = rng(seed, "taobao-mm", "users").choice(len(known), n_users, replace=False)
    return known[np.sort(rows)]


def _samples(path: Path, name: str, users: pl.DataFrame | None) -> pl.DataFrame:
    file = path / f"{name}_samples.parquet"
    rows = read_frame(file, [LABEL, USER, ITEM], users)
    length = rows[LABEL].list.len()
    if not ((length == 2) & (rows[LABEL].list.sum() == 1)).all():
        raise DataError(
            "a label is not one-hot", where=f"{file} -> {LABEL}", must="[1, 0] or [0, 1]"
        )
    return rows.select(user=USER, item=ITEM, click=pl.col(LABEL).list.get(1).cast(pl.Int8))


def _profiles(
    path: Path, name: str, config: TaobaoMmConfig, users: pl.DataFrame | None
) -> pl.DataFrame:
    file = path / f"{name}_user_features.parquet"
    rows = read_frame(file, [USER, *USER_FEATURES, HISTORY], users)
    return rows.with_columns(pl.col(HISTORY).list.tail(config.history_length))


def _history(
    path: Path, profiles: pl.DataFrame, config: TaobaoMmConfig
) -> tuple[pl.DataFrame, int]:
    """Return ``user``, ``item``, ``time`` in order, and how many items were left out."""
    lists = profiles.select(user=USER, item=HISTORY).filter(pl.col("item").list.len() > 0)
    rows = lists.explode("item").drop_nulls().filter(pl.col("item") != NO_ITEM)
    kept = rows
    if config.history_needs_vector:
        wanted = rows.select(pl.col("item").alias(ITEM)).unique()
        known = read_frame(path / VECTORS, [ITEM], wanted).unique()
        kept = rows.join(known, left_on="item", right_on=ITEM, how="semi", maintain_order="left")
    time = pl.int_range(pl.len(), dtype=pl.Int64).over("user")
    return kept.with_columns(time=time), len(rows) - len(kept)


def _users(profiles: pl.DataFrame) -> pl.DataFrame:
    features = [pl.col(name).cast(pl.String).alias(f"c:{name}") for name in USER_FEATURES]
    return profiles.select(pl.col(USER).alias("user"), *features)


def _items(
    path: Path, seen: Sequence[pl.Series], only_seen: bool
) -> tuple[pl.DataFrame, FloatArray]:
    """Return the items that were met, or every item of any table, with unit vector or NaN."""
    met = pl.concat([column.unique() for column in seen]).drop_nulls().unique().alias(ITEM)
    keys = met.to_frame() if only_seen else None
    about = read_frame(path / FEATURES, [ITEM, *ITEM_FEATURES], keys)
    no_repeats(about[ITEM], path / FEATURES, "an item id")
    given = read_frame(path / VECTORS, [ITEM, VECTOR], keys)
    no_repeats(given[ITEM], path / VECTORS, "an item id")
    ids = met if only_seen else pl.concat([met, about[ITEM], given[ITEM]]).unique()
    items = pl.DataFrame({"item": ids.sort()})
    joined = items.join(about, left_on="item", right_on=ITEM, how="left", maintain_order="left")

    raw = as_vectors(given[VECTOR], path / VECTORS)
    norm = np.linalg.norm(raw, axis=1, keepdims=True)
    unit = np.divide(raw, norm, out=np.full_like(raw, np.nan), where=norm > 0)
    place = items["item"].search_sorted(given[ITEM]).to_numpy()
    vectors = np.full((len(items), max(raw.shape[1], 1)), np.nan, dtype=np.float32)
    if len(given):
        vectors[place] = unit
    features = [pl.col(name).cast(pl.String).alias(f"c:{name}") for name in ITEM_FEATURES]
    title = pl.col("item").cast(pl.String)
    return joined.select("item", title.alias("title"), pl.lit("").alias("text"), *features), vectors
