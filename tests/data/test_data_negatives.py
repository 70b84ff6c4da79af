"""Assumed negatives: never met, no repeats, drawn by the stated weights, same seed same draw."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.data.negatives import draw_unmet, popularity_weights, with_negatives
from prerank.data.simulated import simulated_exposures
from prerank.data.unexposed import pair_keys

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


def test_simulated_exposures_copy_the_moment_and_avoid_held_out_items() -> None:
    known = pl.DataFrame({"user": [7, 7, 8], "item": [1, 2, 1], "time": [0, 1, 0]})
    positives = known.filter(pl.col("time") == 0)
    items = pl.Series("item", [1, 2, 3, 4])
    rows = simulated_exposures(positives, known, items, 9, 0.75, np.random.default_rng(0))
    found = rows.select("user", "item", "time", "request", "click").rows()
    # User 7 also likes 2 later, so only 3 and 4 can stand beside 1; user 8 leaves 2, 3, 4.
    assert found == [
        (7, "1", 0, 0, 1),
        (7, "3", 0, 0, 0),
        (7, "4", 0, 0, 0),
        (8, "1", 0, 1, 1),
        (8, "2", 0, 1, 0),
        (8, "3", 0, 1, 0),
        (8, "4", 0, 1, 0),
    ]
