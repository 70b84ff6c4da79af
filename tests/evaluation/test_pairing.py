"""Two runs compared user by user, held against values worked out by hand and by chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from prerank.evaluation.pairing import Kept, UserValues, paired, read_kept, read_users
from prerank.evaluation.significance import UserSums


def kept(value: list[float], seeds: list[float] | None = None) -> Kept:
    num = np.array(value)
    return Kept(num, np.ones(len(num)), np.array([num.mean()] if seeds is None else seeds))


def test_one_seed_is_a_paired_t_test() -> None:
    first, second = [0.5, 0.25, 0.75, 1.0], [0.5, 0.5, 1.0, 0.75]
    found = paired(kept(first), kept(second), 0.95)
    known = stats.ttest_rel(second, first)
    low, high = known.confidence_interval(0.95)
    assert found is not None and found.n == 4
    assert found.value == pytest.approx(0.25 / 4)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.p == pytest.approx(known.pvalue)


def test_users_alike_leave_a_welch_test_of_the_seeds() -> None:
    one, two = [0.4, 0.5, 0.6], [0.7, 0.8]
    found = paired(kept([0.5] * 9, one), kept([0.75] * 9, two), 0.95)
    known = stats.ttest_ind(two, one, equal_var=False)
    assert found is not None and found.p == pytest.approx(known.pvalue)
    assert found.value == pytest.approx(0.25)


def test_weights_are_those_of_a_ratio_of_sums() -> None:
    den = np.array([1.0, 3.0, 0.0])
    first = Kept(np.array([1.0, 0.0, 0.0]), den, np.array([0.25]))
    second = Kept(np.array([1.0, 3.0, 9.0]), den, np.array([1.0]))
    found = paired(first, second, 0.95)
    assert found is not None and found.n == 2  # the third has no value in the first
    assert found.value == pytest.approx(4 / 4 - 1 / 4)


def test_nothing_to_say_of_one_user_or_of_no_difference() -> None:
    assert paired(kept([0.5]), kept([0.7]), 0.95) is None
    same = paired(kept([0.5, 0.75]), kept([0.5, 0.75]), 0.95)
    assert same is not None and (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    hits, rounds = 0, 400
    for _ in range(rounds):
        user, seeds = rng.normal(0, 0.2, 80), rng.normal(0, 0.03, (2, 4))
        values = [user + rng.normal(0, 0.1, 80) + of.mean() for of in seeds]
        one, two = (
            Kept(num, np.ones(80), user.mean() + of) for num, of in zip(values, seeds, strict=True)
        )
        found = paired(one, two, 0.95)
        assert found is not None
        hits += found.low <= 0 <= found.high
    assert 0.92 <= hits / rounds <= 0.985


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    num = np.array([[0.5, 0.0, 1.0], [1.0, 0.0, 0.5]])
    sums = UserSums(num, np.array([1.0, 0.0, 2.0]))
    made = UserValues(["gauc"])
    made.add('a "pool"', "gpl", np.array([7, 8, 9]), {("all", "gauc"): sums, ("all", "ece"): sums})
    made.save(tmp_path / "users.safetensors")
    users = read_users(tmp_path / "users.safetensors", 'a "pool"')
    assert users is not None and users.tolist() == [7, 8, 9]
    assert read_users(tmp_path / "users.safetensors", "other") is None
    back = read_kept(tmp_path / "users.safetensors", "gpl", 'a "pool"', "all", "gauc")
    assert back is not None and back.num.tolist() == [0.75, 0.0, 0.75]
    assert back.den.tolist() == [1.0, 0.0, 2.0] and back.seeds.tolist() == [0.5, 0.5]
    assert read_kept(tmp_path / "users.safetensors", "gpl", 'a "pool"', "all", "ece") is None
