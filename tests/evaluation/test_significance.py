import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from prerank.artifacts import LEAST_USERS
from prerank.evaluation import significance as sig
from prerank.evaluation.metrics import sort_rows

MANY = 100  # users


def sums(*rows: list[float]) -> sig.UserSums:
    num = np.array(rows, np.float64)
    return sig.UserSums(num, np.ones(num.shape[1]))


def test_user_sums_by_hand() -> None:
    # Requests of users 0, 0, 1, 2; the last has no value.
    made = sig.user_sums(np.array([1.0, 0.5, 0.0, np.nan]), np.array([0, 0, 1, 2]), 4)
    assert made.num.tolist() == [[1.5, 0, 0, 0]]
    assert made.den.tolist() == [2, 1, 0, 0]
    assert (made.n, made.values().tolist()) == (2, [0.5])


def test_no_user_has_a_value() -> None:
    made = sig.user_sums(np.full(2, np.nan), np.array([0, 1]), 2)
    assert np.isnan(made.values()).all()
    assert sig.bootstrap_intervals([made], 10, 0.95, 0) == [None]


def test_one_user_has_no_interval() -> None:
    assert sig.bootstrap_intervals([sums([1.0])], 10, 0.95, 0) == [None]


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_a_constant_has_an_interval_of_no_length(n_seeds: int) -> None:
    found = sig.bootstrap_intervals([sums(*[[0.5] * 20] * n_seeds)], 50, 0.95, 0)
    assert found[0] == pytest.approx((0.5, 0.5))


def test_auc_sums_mean_is_the_auc_and_ties_count_half() -> None:
    rng = np.random.default_rng(0)
    user, click = rng.integers(0, 7, 300), rng.integers(0, 2, 300).astype(np.int8)
    score = rng.integers(-5, 5, 300).astype(np.float32)
    made = sig.auc_sums(user, click, score, sort_rows(score), 9)
    assert made.values()[0] == pytest.approx(roc_auc_score(click, score), abs=1e-12)
    assert made.den.tolist() == [1] * 7 + [0] * 2


def test_auc_influence_is_the_jackknife_of_users() -> None:
    # IF_u of the AUC agrees with the change on leaving the user out, up to O(1 / U).
    rng = np.random.default_rng(1)
    n_users = 200
    user = np.repeat(np.arange(n_users), 10)
    score = rng.normal(size=len(user)).astype(np.float32)
    click = (score + rng.normal(size=len(user)) > 0).astype(np.int8)
    made = sig.auc_sums(user, click, score, sort_rows(score), n_users)
    area = roc_auc_score(click, score)
    left = [roc_auc_score(click[user != u], score[user != u]) for u in range(20)]
    influence = (made.num[0, :20] - area) / n_users
    assert np.corrcoef(influence, area - np.array(left))[0, 1] > 0.999
    np.testing.assert_allclose(influence, area - np.array(left), atol=3e-5)


def test_auc_without_one_class_has_no_value() -> None:
    score = np.zeros(3, np.float32)
    made = sig.auc_sums(np.arange(3), np.ones(3, np.int8), score, np.arange(3), 3)
    assert made.n == 0 and np.isnan(made.values()).all()


def test_draws_are_the_same_in_chunks_and_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = np.concatenate(list(sig.user_draws(13, 20, 5)))
    again = np.concatenate(list(sig.user_draws(13, 20, 5)))  # kept from the first time
    np.testing.assert_array_equal(again, at_once)
    monkeypatch.setattr(sig, "CHUNK_CELLS", 3 * 13)
    monkeypatch.setattr(sig, "KEPT_CELLS", 0)
    in_chunks = list(sig.user_draws(13, 20, 5))
    assert len(in_chunks) == 7
    np.testing.assert_array_equal(np.concatenate(in_chunks), at_once)
    assert (at_once.sum(axis=1) == 13).all() and (at_once >= 0).all()


@pytest.mark.parametrize("n_seeds", [2, 5])
def test_seed_draws_are_students_t_of_a_mean_of_seeds(n_seeds: int) -> None:
    values = np.array([0.1, 0.4, 0.2, 0.9, 0.5])[:n_seeds]
    drawn = sig.seed_draws(n_seeds, 40_000, 0) @ values
    low, high = sig.percentiles(drawn, 0.9) or (0, 0)
    assert (low, high) == pytest.approx(sig.seed_interval(values, 0.9), abs=0.05)
    np.testing.assert_allclose(sig.seed_draws(n_seeds, 100, 0).sum(axis=1), 1)
    assert (sig.seed_draws(1, 3, 0) == 1).all()


def test_difference_with_itself_is_exactly_zero() -> None:
    one = sums(*np.random.default_rng(0).normal(size=(5, 60)).tolist())
    zero = one.minus(one)
    assert zero.values().tolist() == [0] * 5
    assert sig.bootstrap_intervals([one, zero], 100, 0.95, 0)[1] == (0, 0)


def test_pairing_removes_what_two_methods_share() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(5, 200))
    one, other = sums(*shared.tolist()), sums(*(shared + 0.01).tolist())
    low, high = sig.bootstrap_intervals([other.minus(one)], 100, 0.95, 0)[0] or (0, 0)
    assert low == pytest.approx(0.01) and high == pytest.approx(0.01)


def coverage(make: "Maker", truth: float, n_worlds: int = 200) -> float:
    """Share of worlds whose 95 % interval holds the truth."""
    inside = 0
    for world in range(n_worlds):
        rng = np.random.default_rng(world)
        found = sig.bootstrap_intervals([make(rng)], 200, 0.95, world)[0]
        assert found is not None
        inside += found[0] <= truth <= found[1]
    return inside / n_worlds


class Maker:
    """Values = mean + user effect + seed effect + noise."""

    def __init__(self, n_seeds: int, user: float, seed: float) -> None:
        self.n_seeds, self.user, self.seed = n_seeds, user, seed

    def __call__(self, rng: np.random.Generator) -> sig.UserSums:
        users: NDArray[np.float64] = self.user * rng.normal(size=80)
        seeds = self.seed * rng.normal(size=(self.n_seeds, 1))
        values = 0.3 + users + seeds + 0.05 * rng.normal(size=(self.n_seeds, 80))
        return sums(*values.tolist())


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    assert 0.90 <= coverage(Maker(1, user=0.2, seed=0), 0.3) <= 0.99
    assert 0.90 <= coverage(Maker(5, user=0.2, seed=0), 0.3) <= 0.99
    # Seeds that count as much as users, and seeds that decide: drawn again with replacement, five
    # of them hold the truth in 92 and 88 % of the worlds.
    assert 0.93 <= coverage(Maker(5, user=0.1, seed=0.025), 0.3) <= 0.99
    assert 0.93 <= coverage(Maker(5, user=0.02, seed=0.05), 0.3) <= 0.99
    assert coverage(Maker(2, user=0.1, seed=0.01), 0.3) >= 0.95


def test_seed_interval_is_students() -> None:
    # Mean 2, standard error 1 / sqrt(3), t(.975, 2) = 4.3027.
    low, high = sig.seed_interval(np.array([1.0, 2.0, 3.0]), 0.95) or (0, 0)
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert sig.seed_interval(np.array([1.0]), 0.95) is None


def test_p_value_counts_the_draws_beyond_zero() -> None:
    # 2 of 9 draws lie at or below zero: 2 (1 + 2) / (9 + 1).
    drawn = np.array([-0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    assert sig.p_value(drawn, MANY) == pytest.approx(0.6)
    assert sig.p_value(-drawn, MANY) == pytest.approx(0.6)
    assert sig.p_value(np.ones(99), MANY) == pytest.approx(0.02)  # the least that 99 draws can show
    assert sig.p_value(np.zeros(99), MANY) == 1.0
    assert sig.p_value(np.zeros(0), MANY) is None


def test_no_p_from_a_handful_of_users() -> None:
    drawn = np.ones(99)
    assert LEAST_USERS == 10
    assert sig.p_value(drawn, LEAST_USERS) is not None
    assert sig.p_value(drawn, LEAST_USERS - 1) is None


def test_p_below_alpha_where_the_interval_leaves_zero_out() -> None:
    for shift in (-0.3, -0.05, 0.0, 0.02, 0.2):
        drawn = np.random.default_rng(0).normal(shift, 0.05, size=4000)
        low, high = sig.percentiles(drawn, 0.95) or (0, 0)
        assert ((sig.p_value(drawn, MANY) or 0) < 0.05) == (low > 0 or high < 0)


def test_p_is_uniform_when_nothing_differs() -> None:
    rng = np.random.default_rng(0)
    found = []
    for world in range(300):
        one = sums(*rng.normal(size=(1, 60)).tolist())
        found.append(sig.p_value(sig.bootstrap_values([one], 200, world)[0], MANY) or 0)
    # Binomial(300, alpha): 15 and 90 expected; the percentile bootstrap of 60 users is a bit bold.
    assert 6 <= sum(p <= 0.05 for p in found) <= 33
    assert 65 <= sum(p <= 0.3 for p in found) <= 120


def test_holm_by_hand() -> None:
    # .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, then the running maximum.
    assert sig.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert sig.holm([0.6, 0.7]) == [1.0, 1.0]
    assert sig.holm([0.04]) == [0.04]
    assert sig.holm([]) == []


def test_enough_draws_to_show_the_strongest_of_many() -> None:
    n = sig.smallest_resamples(30, 0.95)
    assert n == 2400
    strongest = sig.p_value(np.ones(n), MANY) or 1
    assert sig.holm([strongest] + [1.0] * 29)[0] < 0.05
