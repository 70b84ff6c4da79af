"""D_u: candidates that training saw neither exposed nor interacted with, each pair once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.artifacts import Cuts
from prerank.data.unexposed import (
    contains,
    exposure_counts,
    interaction_counts,
    known_in_training,
    pair_keys,
    propose_pairs,
    sorted_unique,
    unexposed_pairs,
)

from .test_data_history import tiny_dataset

TRAIN, VALIDATION, TEST = 0, 1, 2


def test_unexposed_pairs_by_hand() -> None:
    data = tiny_dataset(
        interactions=[(0, 1, 5)],
        exposures=[(0, 2, 6, 0, TRAIN), (0, 3, 7, 0, VALIDATION), (0, 4, 8, 1, TEST)],
        candidates=[(0, 1, 6), (0, 2, 6), (0, 3, 6), (0, 4, 6), (0, 5, 9), (0, 5, 6), (1, 2, 6)],
    )
    pairs = unexposed_pairs(data)
    # 1 was liked, 2 was exposed; 3 and 4 are exposed in held-out time, and training must not know.
    assert list(zip(pairs.user.tolist(), pairs.item.tolist(), strict=True)) == [
        (0, 3),
        (0, 4),
        (0, 5),
        (1, 2),
    ]
    # The latest request of a pair counts; truth follows its row.
    assert pairs.time.tolist() == [6, 6, 9, 6]
    assert pairs.truth.tolist() == pytest.approx([0.2, 0.3, 0.4, 0.6])


def test_a_validation_click_does_not_take_its_pair_out() -> None:
    shown = [(0, 3, 9, 1, VALIDATION), (0, 4, 9, 1, TEST)]
    data = tiny_dataset([(0, 3, 9)], exposures=shown, candidates=[(0, 3, 6), (0, 4, 6)])
    assert unexposed_pairs(replace(data, cuts=Cuts(validation=8))).item.tolist() == [3, 4]


def test_candidates_before_the_anchor_cut_are_dropped() -> None:
    data = tiny_dataset([], candidates=[(0, 1, 9), (0, 2, 10)], anchors=10)
    assert unexposed_pairs(data).item.tolist() == [2]


def test_no_candidates() -> None:
    assert len(unexposed_pairs(tiny_dataset([(0, 1, 1)]))) == 0


def test_counts() -> None:
    data = tiny_dataset([(0, 1, 5), (1, 1, 5)], exposures=[(0, 2, 6, 0, TRAIN), (1, 2, 6, 0, TEST)])
    assert exposure_counts(data).tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert interaction_counts(data).tolist() == [0, 2, 0, 0, 0, 0, 0, 0]


def test_held_out_periods_count_for_nobodys_popularity() -> None:
    data = tiny_dataset([(0, 1, 5), (1, 1, 6), (1, 2, 7)])
    held = replace(data, cuts=Cuts(validation=6, test=8))
    assert interaction_counts(held).tolist() == [0, 1, 0, 0, 0, 0, 0, 0]
    assert interaction_counts(replace(held, time_unit="none")).tolist() == [0, 2, 1, 0, 0, 0, 0, 0]


def test_proposed_pairs_are_new_and_unique_and_follow_the_seed() -> None:
    data = tiny_dataset([(0, 1, 5), (2, 3, 7)], exposures=[(0, 2, 6, 0, TRAIN)])
    pairs = propose_pairs(data, 50, 0.0, np.random.default_rng(3))
    again = propose_pairs(data, 50, 0.0, np.random.default_rng(3))
    found = set(zip(pairs.user.tolist(), pairs.item.tolist(), strict=True))
    # 50 draws of 8 items find nearly all: user 1 has no interaction, so none.
    assert found <= {(0, i) for i in (0, 3, 4, 5, 6, 7)} | {(2, i) for i in (0, 1, 2, 4, 5, 6, 7)}
    assert len(found) == len(pairs) >= 11
    assert pairs.time.tolist() == [8] * len(pairs)
    assert (pairs.item == again.item).all()


def test_what_validation_holds_can_be_proposed_as_what_test_holds() -> None:
    shown = [(0, 2, 6, 0, TRAIN), (0, 3, 9, 1, VALIDATION), (0, 4, 9, 1, TEST)]
    data = tiny_dataset([(0, 1, 5), (0, 3, 9)], exposures=shown)
    data = replace(data, cuts=Cuts(validation=8))
    pairs = propose_pairs(data, 200, 0.0, np.random.default_rng(3))
    # Were 3, clicked in validation, never drawn, a weight tuned there would be tuned on a leak.
    assert pairs.item.tolist() == [0, 3, 4, 5, 6, 7]
    assert pairs.time.tolist() == [8] * 6


@given(st.lists(st.integers(-5, 5)), st.lists(st.integers(-5, 5)))
def test_sorted_unique_and_contains_equal_python_sets(keys: list[int], probes: list[int]) -> None:
    ordered = sorted_unique(np.array(keys, np.int64))
    assert ordered.tolist() == sorted(set(keys))
    found = contains(ordered, np.array(probes, np.int64))
    assert found.tolist() == [probe in set(keys) for probe in probes]


@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1)), min_size=2))
def test_pair_keys_sort_as_the_pairs_do(pairs: list[tuple[int, int]]) -> None:
    user, item = (np.array(column, np.int32) for column in zip(*pairs, strict=True))
    order = np.argsort(pair_keys(user, item), kind="stable")
    assert [pairs[k] for k in order] == sorted(pairs)


def test_training_knows_no_held_out_exposure() -> None:
    shown = [(0, 2, 6, 1, TRAIN), (0, 3, 6, 1, VALIDATION), (0, 4, 6, 1, TEST)]
    data = tiny_dataset([(1, 1, 1), (1, 2, 7)], exposures=shown)
    assert known_in_training(data, 7).tolist() == [2, (1 << 32) + 1]
