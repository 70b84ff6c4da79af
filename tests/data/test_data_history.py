"""Histories: strictly before the row's moment, most recent last."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from prerank.artifacts import (
    Candidates,
    Catalog,
    Cuts,
    Dataset,
    Exposures,
    Features,
    Interactions,
    Pools,
    TimeUnit,
)
from prerank.data.history import anchor_ends, history_ends, last_items
from prerank.vocabulary import Vocabulary


def ints(values: Sequence[int], kind: type = np.int32) -> NDArray[np.int32]:
    return np.array(values, dtype=kind)


def tiny_dataset(
    interactions: Sequence[tuple[int, int, int]],
    time_unit: TimeUnit = "ms",
    anchors: int | None = None,
    exposures: Sequence[tuple[int, int, int, int, int]] = (),
    candidates: Sequence[tuple[int, int, int]] = (),
    n_users: int = 3,
    n_items: int = 8,
    cuts: Cuts | None = None,
) -> Dataset:
    """A dataset by hand: interactions (user, item, time), exposures (user, item, time, click,
    split), candidates (user, item, time)."""
    liked = np.array(interactions, np.int64).reshape(-1, 3)
    shown = np.array(exposures, np.int64).reshape(-1, 5)
    offered = np.array(candidates, np.int64).reshape(-1, 3)
    none = np.zeros(0, np.int64)
    return Dataset(
        name="tiny",
        time_unit=time_unit,
        users=Vocabulary.of(range(n_users)),
        items=Vocabulary.of(range(n_items)),
        user_features=Features(n_users),
        catalog=Catalog(
            np.array([""] * n_items, object), np.array([""] * n_items, object), Features(n_items)
        ),
        exposures=Exposures(
            request=np.arange(len(shown)),
            user=ints(shown[:, 0]),
            item=ints(shown[:, 1]),
            time=shown[:, 2],
            click=shown[:, 3].astype(np.int8),
            position=np.full(len(shown), -1, np.int32),
            propensity=np.full(len(shown), np.nan, np.float32),
            split=shown[:, 4].astype(np.int8),
        ),
        candidates=Candidates(
            request=np.arange(len(offered)),
            user=ints(offered[:, 0]),
            item=ints(offered[:, 1]),
            time=offered[:, 2],
            stage=np.zeros(len(offered), np.int8),
            score=np.full(len(offered), np.nan, np.float32),
            truth=np.arange(len(offered), dtype=np.float32) / 10,
        ),
        interactions=Interactions(ints(liked[:, 0]), ints(liked[:, 1]), liked[:, 2]),
        pools=Pools(
            pool=none.astype(np.int16),
            split=none.astype(np.int8),
            request=none,
            user=ints(none),
            item=ints(none),
            time=none,
            click=none.astype(np.int8),
        ),
        cuts=cuts or Cuts(anchors=anchors),
    )


events = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 6)), max_size=25)
rows = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7)), min_size=1, max_size=8)


def test_anchors_see_what_lies_before_their_cut() -> None:
    liked = [(0, 5, 10), (0, 6, 20), (0, 7, 20), (0, 5, 30), (2, 1, 15)]
    assert anchor_ends(tiny_dataset(liked, anchors=20)).tolist() == [1, 4, 5]
    assert anchor_ends(tiny_dataset(liked)).tolist() == [4, 4, 5]
    assert anchor_ends(tiny_dataset([])).tolist() == [0, 0, 0]


@given(events, rows, st.integers(1, 4))
def test_histories_equal_a_plain_loop(
    liked: list[tuple[int, int, int]], wanted: list[tuple[int, int]], length: int
) -> None:
    ordered = sorted(liked, key=lambda row: (row[0], row[2]))
    table = np.array(ordered, np.int64).reshape(-1, 3)
    interactions = Interactions(ints(table[:, 0]), ints(table[:, 1]), table[:, 2])
    user, time = (np.array(column) for column in zip(*wanted, strict=True))
    user, time = ints(user), time.astype(np.int64)
    end = history_ends(interactions, 4, "ms", user, time)
    found = last_items(interactions, interactions.offsets(4)[user], end, length)
    for (u, t), got in zip(wanted, found.tolist(), strict=True):
        before = [i for who, i, when in ordered if who == u and when < t][-length:]
        assert got == [-1] * (length - len(before)) + before


@settings(max_examples=30)
@given(st.integers(0, 1000), st.sampled_from(["ms", "order"]))
def test_few_rows_of_a_long_log_end_where_many_do(seed: int, unit: TimeUnit) -> None:
    rng = np.random.default_rng(seed)
    user, time = rng.integers(0, 5, 300), rng.integers(0, 20, 300)
    order = np.lexsort((time, user))
    log = Interactions(
        user[order].astype(np.int32), np.zeros(300, np.int32), time[order].astype(np.int64)
    )
    wanted = rng.integers(0, 6, 300).astype(np.int32), rng.integers(-1, 22, 300).astype(np.int64)
    ends = history_ends(log, 6, unit, *wanted)
    few = [history_ends(log, 6, unit, *(of[k : k + 4] for of in wanted)) for k in range(0, 300, 4)]
    assert np.array_equal(np.concatenate(few), ends)
