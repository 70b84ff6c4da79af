"""Taobao-MM: samples with clicks, lifelong histories, frozen multimodal vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from prerank.artifacts import TEST, TRAIN, FloatArray
from prerank.data.assemble import Logs
from prerank.data.config import SplitConfig
from prerank.data.split import random_split
from prerank.data.tables import as_vectors, no_repeats, read_frame
from prerank.errors import DataError
from prerank.seeds import rng

USER, ITEM, LABEL, HISTORY, VECTOR = "129_1", "205", "label_0", "150_2_180", "205_c"
USER_FEATURES = tuple(f"130_{n}" for n in range(1, 6))
ITEM_FEATURES = ("206", "213", "214")


def read_taobao_mm(path: Path, split: SplitConfig, seed: int) -> Logs:
    """Read samples, user features, item features and vectors.

    The data has no time, no request and no unexposed list. Histories are ordered, so time is
    the order: history items 0, 1, 2 ..., every sample after the whole history. Users in both
    train and test keep the training history, so nothing of the test period is in it. A share of
    the training users (``split.validation_fraction``) is validation.
    """
    train, test = _samples(path, "train"), _samples(path, "test")
    profiles = pl.concat([_profiles(path, name) for name in ("train", "test")])
    profiles = profiles.unique(USER, keep="first", maintain_order=True)
    lists = profiles.select(user=USER, item=HISTORY).filter(pl.col("item").list.len() > 0)
    length = pl.col("item").list.len().cast(pl.Int64)
    history = lists.with_columns(time=pl.int_ranges(0, length)).explode("item", "time")
    ends = lists.select("user", length.alias("time"))

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
    items, vectors = _items(path, [shown["item"], history["item"]])
    n_given = int((~np.isnan(vectors[:, 0])).sum())
    both = test["user"].unique().is_in(train["user"].implode()).sum()
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
            "no unexposed list: candidates must be drawn from a stated proposal distribution",
        ),
    )


def _samples(path: Path, name: str) -> pl.DataFrame:
    file = path / f"{name}_samples.parquet"
    rows = read_frame(file, [LABEL, USER, ITEM])
    length = rows[LABEL].list.len()
    if not ((length == 2) & (rows[LABEL].list.sum() == 1)).all():
        raise DataError(
            "a label is not one-hot", where=f"{file} -> {LABEL}", must="[1, 0] or [0, 1]"
        )
    return rows.select(user=USER, item=ITEM, click=pl.col(LABEL).list.get(1).cast(pl.Int8))


def _profiles(path: Path, name: str) -> pl.DataFrame:
    file = path / f"{name}_user_features.parquet"
    return read_frame(file, [USER, *USER_FEATURES, HISTORY])


def _users(profiles: pl.DataFrame) -> pl.DataFrame:
    features = [pl.col(name).cast(pl.String).alias(f"c:{name}") for name in USER_FEATURES]
    return profiles.select(pl.col(USER).alias("user"), *features)


def _items(path: Path, seen: list[pl.Series]) -> tuple[pl.DataFrame, FloatArray]:
    """Return every item that appears anywhere, with its unit vector or NaN."""
    about = read_frame(path / "item_features.parquet", [ITEM, *ITEM_FEATURES])
    no_repeats(about[ITEM], path / "item_features.parquet", "an item id")
    file = path / "scl_embedding_int8_p90.parquet"
    given = read_frame(file, [ITEM, VECTOR])
    no_repeats(given[ITEM], file, "an item id")
    ids = pl.concat([column.unique() for column in (*seen, about[ITEM], given[ITEM])])
    items = pl.DataFrame({"item": ids.drop_nulls().unique().sort()})
    joined = items.join(about, left_on="item", right_on=ITEM, how="left", maintain_order="left")

    raw = as_vectors(given[VECTOR], file)
    norm = np.linalg.norm(raw, axis=1, keepdims=True)
    unit = np.divide(raw, norm, out=np.full_like(raw, np.nan), where=norm > 0)
    place = items["item"].search_sorted(given[ITEM]).to_numpy()
    vectors = np.full((len(items), raw.shape[1]), np.nan, dtype=np.float32)
    vectors[place] = unit
    features = [pl.col(name).cast(pl.String).alias(f"c:{name}") for name in ITEM_FEATURES]
    title = pl.col("item").cast(pl.String)
    return joined.select("item", title.alias("title"), pl.lit("").alias("text"), *features), vectors
