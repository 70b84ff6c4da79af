"""A log of any size, written file by file: what benchmarks/bench_scale.py prepares.

Users like two of `CLUSTERS` clusters of items, items are as popular as Zipf says, and a click is
likelier where the two meet. Rows are in time order; no more than one file is ever in memory.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

CLUSTERS = 512
START_MS, DAYS = 1_750_000_000_000, 28
SLATE = 10
"""Items of one request."""
FILE_ROWS = 4_000_000
ALIGNED, CLICK, LIKED_CLICK = 0.35, 0.1, 0.4
"""Share of shown items of a cluster that the user likes; click rate of the others, and of these."""


def unit_rows(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def write_log(folder: Path, rows: int, users: int, items: int, dim: int, seed: int) -> None:
    """Write ``items.parquet`` with vectors, and ``exposures/*.parquet`` of ``rows`` rows."""
    (folder / "exposures").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 0])
    centre_CD = unit_rows(rng.standard_normal((CLUSTERS, dim), dtype=np.float32))
    # Item i is of cluster i % CLUSTERS, so that the items of a cluster need no table.
    noise = rng.standard_normal((items, dim), dtype=np.float32) * np.float32(0.6 / dim**0.5)
    vectors = unit_rows(centre_CD[np.arange(items) % CLUSTERS] + noise)
    number = pl.Series("item", np.arange(items, dtype=np.int32))
    names = ("i" + number.cast(pl.String).str.zfill(8)).alias("item")
    pl.DataFrame(
        {
            "item": names,
            "title": names,
            "vector": pl.Series(vectors, dtype=pl.Array(pl.Float32, dim)),
        }
    ).write_parquet(folder / "items.parquet")
    for part, start in enumerate(range(0, rows, FILE_ROWS)):
        frame = shown(start, min(FILE_ROWS, rows - start), rows, users, items, seed)
        frame.write_parquet(folder / "exposures" / f"day-{part:05d}.parquet")


def shown(start: int, n: int, rows: int, users: int, items: int, seed: int) -> pl.DataFrame:
    """Return the rows ``start : start + n`` of the log."""
    rng = np.random.default_rng([seed, 1, start])
    slates = -(-n // SLATE)
    user = np.repeat(rng.integers(users, size=slates), SLATE)[:n]
    liked = np.where(rng.random(n) < 0.5, user * 7919 % CLUSTERS, user * 104729 // 31 % CLUSTERS)
    aligned = rng.random(n) < ALIGNED
    rank = (items // CLUSTERS) ** rng.random(n)  # density 1 / rank: Zipf's law
    of_cluster = np.where(aligned, liked, rng.integers(CLUSTERS, size=n))
    item = np.minimum((rank - 1).astype(np.int64) * CLUSTERS + of_cluster, items - 1)
    is_liked = (item % CLUSTERS == user * 7919 % CLUSTERS) | (
        item % CLUSTERS == user * 104729 // 31 % CLUSTERS
    )
    click = rng.random(n) < np.where(is_liked, LIKED_CLICK, CLICK)
    request = start // SLATE + np.arange(n) // SLATE
    time = START_MS + (request * SLATE / rows * DAYS * 86_400_000).astype(np.int64)
    frame = pl.DataFrame(
        {
            "request": request,
            "user": user,
            "item": item,
            "time": time,
            "click": click.astype(np.int8),
            "position": (np.arange(n) % SLATE).astype(np.int8),
        }
    )
    return frame.with_columns(
        user="u" + pl.col("user").cast(pl.String).str.zfill(9),
        item="i" + pl.col("item").cast(pl.String).str.zfill(8),
    )
