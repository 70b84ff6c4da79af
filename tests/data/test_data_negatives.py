"""Assumed negatives: never met, no repeats, drawn by the stated weights, same seed same draw."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.artifacts import TEST, TRAIN
from prerank.data.assemble import Logs, assemble
from prerank.data.config import PoolsConfig, SplitConfig
from prerank.data.negatives import draw_unmet, popularity_weights, with_negatives
from prerank.data.simulated import Negatives, simulated_exposures
from prerank.data.unexposed import contains, pair_keys, sorted_unique

UNIFORM = np.full(6, 1 / 6)


def test_popularity_weights() -> None:
    # Counts 2, 0, 1 and one more each: 3, 1, 2 of 6.
    found = popularity_weights(np.array([0, 0, 2], np.int32), 3, 1.0)
    assert found == pytest.approx([3 / 6, 1 / 6, 2 / 6])
    assert popularity_weights(np.array([0, 0, 2], np.int32), 3, 0.0) == pytest.approx([1 / 3] * 3)


def test_a_small_catalog_is_exhausted_and_no_more() -> None:
    user = np.array([0, 1], np.int32)
    met = np.sort(pair_keys(np.array([0, 0, 1], np.int32), np.array([2, 4, 0], np.int32)))
    row, item = draw_unmet(user, met, UNIFORM, 99, np.random.default_rng(0))
    assert item[row == 0].tolist() == [0, 1, 3, 5]
    assert item[row == 1].tolist() == [1, 2, 3, 4, 5]


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=6),
    st.sets(st.tuples(st.integers(0, 3), st.integers(0, 19)), max_size=30),
    st.integers(1, 5),
    st.integers(0, 9),
)
def test_drawn_items_are_unmet_distinct_and_enough(
    users: list[int], met: set[tuple[int, int]], n: int, seed: int
) -> None:
    user = np.array(users, np.int32)
    pairs = np.array(sorted(met), np.int32).reshape(-1, 2)
    keys = pair_keys(pairs[:, 0], pairs[:, 1])
    weights = np.full(20, 0.05)
    row, item = draw_unmet(user, keys, weights, n, np.random.default_rng(seed))
    drawn = list(zip(row.tolist(), item.tolist(), strict=True))
    assert drawn == sorted(set(drawn))
    assert not {(users[r], i) for r, i in drawn} & met
    for r, u in enumerate(users):
        unmet = 20 - sum(who == u for who, _ in met)
        assert (row == r).sum() == min(n, unmet) or unmet < n + 3


def test_draws_follow_the_weights() -> None:
    weights = np.array([0.7, 0.1, 0.1, 0.1])
    user = np.zeros(4000, np.int32)
    _, item = draw_unmet(user, np.zeros(0, np.int64), weights, 1, np.random.default_rng(0))
    share = np.bincount(item, minlength=4) / 4000
    assert share == pytest.approx(weights, abs=0.03)


def test_with_negatives_hides_the_positive_among_sorted_items() -> None:
    columns = {"user": np.array([0, 1], np.int32), "item": np.array([3, 5], np.int32)}
    met = np.sort(pair_keys(columns["user"], columns["item"]))
    rows = with_negatives(columns, met, UNIFORM, 2, np.random.default_rng(1))
    assert rows["row"].tolist() == [0, 0, 0, 1, 1, 1]
    assert rows["user"].tolist() == [0, 0, 0, 1, 1, 1]
    for r, positive in ((0, 3), (1, 5)):
        items = rows["item"][rows["row"] == r].tolist()
        assert items == sorted(items) and positive in items
        assert rows["item"][(rows["row"] == r) & (rows["click"] == 1)].tolist() == [positive]


def test_simulated_exposures_copy_the_moment_and_may_hold_what_is_liked_later() -> None:
    positives = {
        "user": np.array([0, 0, 1], np.int32),
        "item": np.array([0, 1, 0], np.int32),
        "time": np.array([5, 9, 5]),
    }
    liked = {"user": np.array([1], np.int32), "item": np.array([3], np.int32)}
    period = np.array([TRAIN, TEST, TRAIN], np.int8)
    rows = simulated_exposures(
        positives, liked, period, 4, Negatives(9, 0.75), np.random.default_rng(0)
    )
    columns = (rows[name].tolist() for name in ("user", "item", "time", "split", "click"))
    found = list(zip(*columns, strict=True))
    # In training user 0 may have passed over 1, which is liked in the test; user 1 has 3 already.
    assert found == [
        (0, 0, 5, TRAIN, 1),
        *[(0, item, 5, TRAIN, 0) for item in (1, 2, 3)],
        (1, 0, 5, TRAIN, 1),
        *[(1, item, 5, TRAIN, 0) for item in (1, 2)],
        (0, 1, 9, TEST, 1),
        *[(0, item, 9, TEST, 0) for item in (2, 3)],
    ]


@pytest.mark.parametrize("time_unit", ["ms", "none"])
def test_simulated_negatives_of_training_say_nothing_of_who_is_clicked_later(
    time_unit: Literal["ms", "none"],
) -> None:
    """Items are liked by popularity alone: whoever was no training negative is no better."""
    generator, n_users, n_items = np.random.default_rng(0), 400, 200
    weight = popularity_weights(np.repeat(np.arange(n_items), np.arange(n_items)), n_items, 1.0)
    liked = [generator.choice(n_items, 12, replace=False, p=weight) for _ in range(n_users)]
    events = pl.DataFrame(
        {
            "user": np.repeat(np.arange(n_users), 12),
            "item": np.concatenate(liked),
            "time": generator.permutation(12 * n_users),
        }
    ).with_columns(request=pl.int_range(pl.len()))
    logs = Logs(
        name="x",
        time_unit=time_unit,
        items=pl.DataFrame({"item": np.arange(n_items), "title": "t", "text": "t"}),
        exposures=events,
        negatives=Negatives(6, 1.0),
    )
    data = assemble(logs, SplitConfig(), PoolsConfig(n_negatives=20, popularity_power=1.0), 0)
    train = data.exposures.split == TRAIN
    passed = train & (data.exposures.click == 0)
    before = sorted_unique(pair_keys(data.exposures.user[passed], data.exposures.item[passed]))
    assert "by the end of that period" in " ".join(data.notes)
    for code, name in enumerate(data.pools.pools):
        if name == "unexposed-uniform":
            continue  # its clicked items are the popular ones, as the negatives are
        pool = data.pools.take(data.pools.pool == code)
        fresh = ~contains(before, pair_keys(pool.user, pool.item))
        rate = [float(fresh[pool.click == click].mean()) for click in (0, 1)]
        assert rate[1] < 0.8 and abs(rate[1] - rate[0]) < 0.04, (name, rate)
