"""The split by hand, and that every kind of leak is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.artifacts import TEST, TRAIN, VALIDATION, Cuts, Interactions, Pools
from prerank.data.config import SplitConfig
from prerank.data.split import (
    check_leaks,
    given_cuts,
    moment_ms,
    random_split,
    split_at,
    temporal_cuts,
)
from prerank.errors import ConfigError, DataError

from .test_data_history import ints, tiny_dataset

TEN = np.arange(10, 110, 10, dtype=np.int64)


def test_fractions_by_hand() -> None:
    cuts = temporal_cuts(TEN[::-1], SplitConfig(validation_fraction=0.2, test_fraction=0.2))
    # Of 10..100 the last two are test, the two before validation; half of the first six: 40.
    assert cuts == Cuts(anchors=40, validation=70, test=90)
    assert split_at(TEN, cuts).tolist() == [TRAIN] * 6 + [VALIDATION] * 2 + [TEST] * 2


def test_equal_times_are_not_torn_apart() -> None:
    time = np.array([1, 2, 3, 4, 5, 6, 7, 9, 9, 9], np.int64)
    cuts = temporal_cuts(time, SplitConfig(validation_fraction=0.2, test_fraction=0.1))
    assert cuts.test == 9
    assert (split_at(time, cuts) == TEST).sum() == 3


def test_moments_win_over_what_the_source_dictates() -> None:
    config = SplitConfig(test_from="1970-01-01T00:00:00.095")
    cuts = temporal_cuts(TEN, config, Cuts(anchors=20, validation=50, test=60))
    assert cuts == Cuts(anchors=20, validation=50, test=95)


def test_a_log_of_one_moment_cannot_be_cut() -> None:
    with pytest.raises(DataError, match="cannot be cut"):
        temporal_cuts(np.full(9, 5, np.int64), SplitConfig())


def test_a_cut_outside_the_log_is_an_error() -> None:
    with pytest.raises(DataError, match="cannot be cut"):
        temporal_cuts(TEN, SplitConfig(), Cuts(validation=50, test=500))
    with pytest.raises(DataError, match="cannot be cut"):
        temporal_cuts(TEN, SplitConfig(), Cuts(validation=1, test=50))


def test_fractions_must_leave_training() -> None:
    with pytest.raises(ConfigError, match="below 1"):
        SplitConfig.parse({"validation_fraction": 0.5, "test_fraction": 0.5})


@pytest.mark.parametrize(
    ("text", "ms"),
    [("1970-01-02", 86_400_000), ("1970-01-01T01:00:00+01:00", 0), ("", None)],
)
def test_moments(text: str, ms: int | None) -> None:
    assert moment_ms(text, "key") == ms


def test_a_moment_that_cannot_be_read() -> None:
    with pytest.raises(ConfigError, match=r"split\.test_from"):
        moment_ms("soon", "split.test_from")


def test_given_cuts() -> None:
    split = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2, 2], np.int8)
    assert given_cuts(TEN, split, 0.5) == Cuts(anchors=40, validation=70, test=90)
    assert given_cuts(TEN[:6], split[:6], 0.0) == Cuts(anchors=10)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(0, 5))
def test_random_split_keeps_groups_together_and_has_its_sizes(groups: list[int], seed: int) -> None:
    config = SplitConfig(validation_fraction=0.3, test_fraction=0.2)
    group = np.array(groups, np.int64)
    split = random_split(group, config, np.random.default_rng(seed))
    by_group = {g: set(split[group == g].tolist()) for g in groups}
    assert all(len(codes) == 1 for codes in by_group.values())
    n = len(by_group)
    assert sum(codes == {TEST} for codes in by_group.values()) == round(0.2 * n)
    assert sum(codes == {VALIDATION} for codes in by_group.values()) == round(0.3 * n)


def one_pool_row(user: int, item: int, time: int, click: int, split: int = TEST) -> Pools:
    return Pools(
        pool=np.zeros(1, np.int16),
        split=np.array([split], np.int8),
        request=np.zeros(1, np.int64),
        user=ints([user]),
        item=ints([item]),
        time=np.array([time], np.int64),
        click=np.array([click], np.int8),
    )


CUTS = Cuts(anchors=20, validation=40, test=50)
SHOWN = [(0, 1, 10, 1, TRAIN), (0, 2, 45, 1, VALIDATION), (0, 3, 60, 1, TEST)]


def test_a_sound_split_passes() -> None:
    data = tiny_dataset([(0, 1, 10), (0, 2, 45)], exposures=SHOWN, cuts=CUTS)
    check_leaks(data)
    check_leaks(replace(data, pools=one_pool_row(0, 3, 60, 1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pools": one_pool_row(0, 3, 39, 1, VALIDATION)}, "pool row lies in training time"),
        ({"pools": one_pool_row(0, 3, 45, 1, TEST)}, "pool row lies outside its period"),
        ({"pools": one_pool_row(0, 3, 60, 1, VALIDATION)}, "pool row lies outside its period"),
        ({"cuts": Cuts(anchors=41, validation=40, test=50)}, "anchor cut lies in validation"),
        ({"cuts": Cuts(anchors=20, validation=40, test=61)}, "a test exposure is too early"),
    ],
)
def test_leaks_with_time(change: dict[str, object], message: str) -> None:
    data = tiny_dataset([(0, 1, 10), (0, 2, 45)], exposures=SHOWN, cuts=CUTS)
    with pytest.raises(DataError, match=message):
        check_leaks(replace(data, **change))


def test_leaks_in_order() -> None:
    data = tiny_dataset([(0, 1, 0), (0, 2, 1)], "order", exposures=[(0, 3, 2, 1, VALIDATION)])
    check_leaks(data)
    late = Interactions(ints([0, 0]), ints([1, 2]), np.array([0, 2], np.int64))
    with pytest.raises(DataError, match="an interaction is not before the user's held-out rows"):
        check_leaks(replace(data, interactions=late))
    shown = [(0, 3, 2, 1, VALIDATION)]
    data = tiny_dataset([(0, 1, 0)], "order", exposures=shown, candidates=[(0, 5, 1), (1, 5, 9)])
    check_leaks(data)  # nothing of user 1 is held out
    data = tiny_dataset([(0, 1, 0)], "order", exposures=shown, candidates=[(0, 5, 2)])
    with pytest.raises(DataError, match="a candidate is not before the user's held-out rows"):
        check_leaks(data)


def test_leaks_in_sets() -> None:
    data = tiny_dataset([(0, 1, 0)], "none", exposures=[(0, 2, 0, 1, VALIDATION)])
    check_leaks(replace(data, pools=one_pool_row(0, 1, 0, 0)))
    with pytest.raises(DataError, match="held-out clicked pair"):
        check_leaks(replace(data, pools=one_pool_row(0, 1, 0, 1)))
    with pytest.raises(DataError, match="held-out clicked pair"):
        check_leaks(tiny_dataset([(0, 2, 0)], "none", exposures=[(0, 2, 0, 1, VALIDATION)]))
