"""The real sets, where they are at hand: figures that their publishers state, and no leaks."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from prerank.artifacts import TEST, TRAIN, VALIDATION, Dataset
from prerank.data.config import PrepareConfig
from prerank.data.prepare import prepare
from prerank.data.split import check_leaks
from prerank.data.unexposed import unexposed_pairs

DEFAULT = Path(__file__).parents[3] / "shared" / "data"
ROOT = Path(os.environ.get("PRERANK_TEST_DATA", DEFAULT))


@cache
def load(folder: str, source: str, seed: int = 0, **more: Any) -> Dataset:
    path = ROOT / folder
    if not path.is_dir():
        pytest.skip(f"no real data at {path} (set PRERANK_TEST_DATA)")
    nested = {name: {"funnel": funnel} for name, funnel in more.items()}
    return prepare(PrepareConfig.parse({"source": source, "path": str(path), **nested}), seed)


def pool(data: Dataset, name: str, split: int = TEST) -> Any:
    rows = data.pools
    return rows.take((rows.pool == rows.pools.index(name)) & (rows.split == split))


def test_games_by_a_fifth_of_the_recalled_users(tmp_path: Path) -> None:
    if not (ROOT / "games").is_dir():
        pytest.skip(f"no real data at {ROOT / 'games'} (set PRERANK_TEST_DATA)")
    recall = pl.read_parquet(ROOT / "games" / "recall.parquet")
    users = recall["user_id"].unique().sort().gather_every(5)
    sequences = pl.read_parquet(ROOT / "games" / "sequences.parquet")
    kept = sequences.filter(pl.col("user_id").is_in(users.implode()))
    kept.write_parquet(tmp_path / "sequences.parquet")
    recall.filter(pl.col("user_id").is_in(users.implode())).write_parquet(
        tmp_path / "recall.parquet"
    )
    pl.read_parquet(ROOT / "games" / "items.parquet").write_parquet(tmp_path / "items.parquet")
    data = prepare(PrepareConfig(source="games", path=str(tmp_path)), 0)

    assert (len(data.users), len(data.items)) == (1200, 16_859)
    assert len(data.interactions) == kept["item_ids"].list.len().sum() - 2 * 1200
    shown = data.exposures
    assert shown.click[shown.split == TRAIN].mean() == 1 / 5
    assert len(data.candidates) == 0  # the recall lists are those of the test request
    share = {
        name: len(np.unique(pool(data, f"recalled/{name}").user)) / 1200
        for name in ("sasrec", "gru4rec", "bpr", "bm25", "pop")
    }
    published = {"sasrec": 0.32, "gru4rec": 0.31, "bpr": 0.23, "bm25": 0.11, "pop": 0.08}
    assert share == pytest.approx(published, abs=0.04)
    for name in ("uniform-99", "popular-99", "recalled", "recalled/sasrec"):
        rows = pool(data, name)
        assert (np.bincount(rows.request, rows.click)[np.unique(rows.request)] == 1).all()
    assert len(pool(data, "uniform-99")) == len(pool(data, "popular-99", VALIDATION)) == 120_000
    check_leaks(data)


def test_anime_click() -> None:
    data = load("anime", "anime", anime="click")
    assert len(data.users) == 4221 and len(data.exposures) == 253_260
    assert len(data.candidates) == 4221 * 300
    assert len(pool(data, "unexposed", VALIDATION)) == 188_160
    assert len(pool(data, "unexposed")) == 824_880
    assert data.exposures.click.mean() == pytest.approx(0.435, abs=5e-4)
    assert (data.exposures.split == VALIDATION).mean() == pytest.approx(0.1, abs=1e-4)
    assert not np.isnan(data.candidates.truth).any()
    # D_u: every candidate that training does not know as exposed.
    held_out = int((data.exposures.split == VALIDATION).sum())
    assert len(unexposed_pairs(data)) == 188_160 + 824_880 + held_out
    assert (
        len(data.interactions)
        == ((data.exposures.split == TRAIN) & (data.exposures.click == 1)).sum()
    )


def test_anime_rating() -> None:
    data = load("anime", "anime", anime="rating")
    assert len(data.exposures) == 81_752
    assert len(data.candidates) == 81_752 + 67_434 + 254_596
    assert data.exposures.click.mean() == pytest.approx(0.727, abs=5e-4)
    assert pool(data, "unexposed").click.mean() == pytest.approx(0.559, abs=5e-4)
    small = pool(data, "liked-14")
    counts = np.unique(small.request, return_counts=True)[1]
    assert (counts == 15).all() and small.click.sum() == len(counts)


def test_kuairand() -> None:
    data = load("kuairand", "kuairand")
    assert (len(data.users), len(data.items)) == (27_285, 7_583)
    assert 228_000 < len(data.exposures) <= 228_329
    assert data.cuts.anchors is not None
    assert data.cuts.anchors == data.exposures.time.min()
    early = data.interactions.time < data.cuts.anchors
    histories = pl.read_parquet(ROOT / "kuairand" / "histories.parquet")
    assert early.sum() == histories["long_watch_seq"].list.len().sum()
    assert data.catalog.text[0].startswith("tag_39 author_7349781 type_NORMAL upload_LongImport")
    assert set(data.pools.pools) == {"exposed", "unexposed-uniform", "unexposed-popular"}
    assert len(pool(data, "exposed")) == (data.exposures.split == TEST).sum()


def test_taobao_mm_demo() -> None:
    path = ROOT / "taobao_mm_demo"
    if not path.is_dir():
        pytest.skip(f"no real data at {path} (set PRERANK_TEST_DATA)")
    whole = {"history_needs_vector": False, "only_seen_items": False}  # its tables do not join
    config = {"source": "taobao-mm", "path": str(path), "taobao_mm": whole}
    data = prepare(PrepareConfig.parse(config), 0)
    assert len(data.exposures) == 20
    assert (data.exposures.split == TEST).sum() == 10
    assert data.catalog.vectors is not None and data.catalog.vectors.shape[1] == 128
    given = ~np.isnan(data.catalog.vectors[:, 0])
    assert given.sum() == 10
    assert np.linalg.norm(data.catalog.vectors[given], axis=1) == pytest.approx(1, abs=1e-5)


def test_the_seed_decides_the_held_out_rows() -> None:
    one, two = load("anime", "anime", anime="click"), load("anime", "anime", 1, anime="click")
    assert (one.exposures.split != two.exposures.split).any()
    assert one.candidates.item.tobytes() == two.candidates.item.tobytes()
