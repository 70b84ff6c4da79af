"""How sure a number is: intervals over users and training seeds.

What is resampled. Most metrics are ratios of sums over users,

    value_s = sum_u num_su / sum_u den_u,        value = mean_s value_s,

with s the training seed: GAUC (num = the user's AUC, den = 1), HR, NDCG and diversity (num = sum
over the user's requests, den = their number) and, by its influence values, global AUC. Each of
the ``n_resamples`` draws takes users with replacement and weighs the training seeds, both at once
(as the two-way or "pigeonhole" bootstrap does, Owen 2007, doi 10.1214/07-AOAS122); its value is
the same ratio under these multiplicities, and the interval is the percentile interval.
The draws of users are the same for all methods, metrics and segments of a pool and the draws of
seeds the same for all methods, so a difference between two methods is paired by user and by seed.

A handful of seeds is no sample to draw from again: drawn so, five seeds as noisy as the users
would leave the truth outside of a 95 % interval twice as often as it says. What the seeds add to a
draw is therefore Student's t of their mean, S - 1 degrees of freedom, in place of a resampled mean:
where the seeds are all that varies the interval is Student's t, and where both vary it is
wider than it need be rather than narrower. With one seed the interval covers users only.

Metrics of the whole pool (coverage, Gini, ECE) are no means over users; their interval is
Student's t over the seeds' values, and absent with one seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from prerank import seeds
from prerank.artifacts import LEAST_USERS

Values = NDArray[np.float64]
Interval = tuple[float, float] | None

CHUNK_CELLS = 8_000_000  # float64 multiplicities held at once: 64 MB
KEPT_CELLS = 50_000_000  # uint16 multiplicities kept between calls: 100 MB


@dataclass(frozen=True, eq=False)
class UserSums:
    """A metric as a ratio of sums over users.

    Attributes:
        num: (S, U) float64, 0 where the user has no value.
        den: (U,) float64 >= 0, the same for every seed.
    """

    num: Values
    den: Values

    @property
    def n(self) -> int:
        """Number of users with a value."""
        return int(np.count_nonzero(self.den))

    def values(self) -> Values:
        """Return (S,): the metric of each training seed; NaN if no user has a value."""
        total = float(self.den.sum())
        values: Values = self.num.sum(axis=1) / (total or np.nan)
        return values

    def minus(self, other: UserSums) -> UserSums:
        """Return the paired difference; ``other`` must have the same denominators.

        One of the two may have a single seed: it is then held against every seed of the other.
        """
        return UserSums(self.num - other.num, self.den)


def user_sums(value: Values, owner: NDArray[np.int64], n_users: int) -> UserSums:
    """Return the sums over users of one seed's values, num (1, U).

    Args:
        value: (Q,) float64, a value a request (or a user), NaN where there is none.
        owner: (Q,) the user of each value, in [0, n_users).
        n_users: U.
    """
    has = ~np.isnan(value)
    den = np.bincount(owner[has], minlength=n_users).astype(np.float64)
    num: Values = np.bincount(owner[has], weights=value[has], minlength=n_users).astype(np.float64)
    return UserSums(num[None, :], den)


def stack(by_seed: Sequence[UserSums]) -> UserSums:
    """Put the sums of several seeds together; their denominators must be equal."""
    return UserSums(np.concatenate([one.num for one in by_seed]), by_seed[0].den)


def auc_sums(
    user: NDArray[np.int64],
    click: NDArray[np.int8],
    score: NDArray[np.float32],
    order: NDArray[np.int64],
    n_users: int,
) -> UserSums:
    """Return global AUC of one seed as user sums, by clustered structural components.

    With V(i) = share of not clicked rows below clicked row i (ties half) and V(j) = share of
    clicked rows above not clicked row j, user u moves the AUC A by
    IF_u = sum_i (V(i) - A) / P + sum_j (V(j) - A) / N (DeLong 1988, clustered as in Obuchowski
    1997, doi 10.2307/2533958). num_u = A + U' IF_u with den_u = 1 over the U' users with rows:
    the IF sum to 0, so the mean is A exactly, and a bootstrap of it is linear in users.

    Args:
        user: (N,) integers in [0, n_users).
        click: (N,) 0 or 1.
        score: (N,) finite.
        order: (M,) rows to use, by rising score.
        n_users: U.

    Returns:
        UserSums with num (1, U); all zero if a class is absent.
    """
    user, clicked, score = user[order], click[order] == 1, score[order]
    positives = int(np.count_nonzero(clicked))
    negatives = len(clicked) - positives
    if not positives or not negatives:
        return UserSums(np.zeros((1, n_users)), np.zeros(n_users))
    start = np.flatnonzero(np.append(True, score[1:] != score[:-1]))
    length = np.diff(np.append(start, len(score)))
    positive_run = np.add.reduceat(clicked.astype(np.int64), start)
    negative_run = length - positive_run
    below = np.cumsum(negative_run) - negative_run + negative_run / 2
    above = positives - np.cumsum(positive_run) + positive_run / 2
    part = np.where(
        clicked,
        np.repeat(below / (negatives * positives), length),
        np.repeat(above / (positives * negatives), length),
    )
    area = float((below * positive_run).sum() / (positives * negatives))
    share = np.where(clicked, 1 / positives, 1 / negatives)
    influence = np.bincount(user, weights=part - area * share, minlength=n_users)
    present = (np.bincount(user, minlength=n_users) > 0).astype(np.float64)
    num = present * (area + present.sum() * influence)
    return UserSums(num[None, :], present)


def user_draws(n_users: int, n_resamples: int, seed: int) -> Iterator[Values]:
    """Yield chunks (R', U) of user multiplicities, R rows in all, each row summing to U.

    Equal arguments give equal draws, whatever they are used for.
    """
    if n_users * n_resamples > KEPT_CELLS:
        yield from _drawn_users(n_users, n_resamples, seed)
    else:
        for counts in _kept_draws(n_users, n_resamples, seed):
            yield counts.astype(np.float64)


@lru_cache(maxsize=1)
def _kept_draws(n_users: int, n_resamples: int, seed: int) -> tuple[NDArray[np.uint16], ...]:
    """Return the draws of the pool at hand in little memory: every method and metric uses them."""
    draws = _drawn_users(n_users, n_resamples, seed)
    return tuple(counts.astype(np.uint16) for counts in draws)


def _drawn_users(n_users: int, n_resamples: int, seed: int) -> Iterator[Values]:
    rng = seeds.rng(seed, "evaluation", "users")
    step = max(1, CHUNK_CELLS // max(1, n_users))
    for low in range(0, n_resamples, step):
        rows = min(step, n_resamples - low)
        drawn = rng.integers(0, n_users, size=(rows, n_users))
        drawn += np.arange(rows)[:, None] * n_users
        counts = np.bincount(drawn.ravel(), minlength=rows * n_users)
        yield counts.reshape(rows, n_users).astype(np.float64)


def seed_draws(n_seeds: int, n_resamples: int, seed: int) -> Values:
    """Return (R, S) weights of the training seeds, each row summing to 1; ones for S = 1.

    1 / S + (z - mean z) / sqrt(S c), with z normal (S,) and c chi-square of S - 1 degrees of
    freedom: the weighted mean of any S values then varies about their mean as
    standard error * t(S - 1). One row of weights is used for all methods and metrics.
    """
    if n_seeds == 1:
        return np.ones((n_resamples, 1))
    rng = seeds.rng(seed, "evaluation", "seeds")
    normal = rng.standard_normal((n_resamples, n_seeds))
    normal -= normal.mean(axis=1, keepdims=True)
    spread = np.sqrt(n_seeds * rng.chisquare(n_seeds - 1, size=(n_resamples, 1)))
    weights: Values = 1 / n_seeds + normal / spread
    return weights


def bootstrap_values(sums: Sequence[UserSums], n_resamples: int, seed: int) -> list[Values]:
    """Return (R',) draws of every metric in ``sums``; none (R' = 0) below two users.

    R' may fall short of ``n_resamples``: a draw may miss every user that has a value.

    Args:
        sums: metrics over the same U users.
        n_resamples: R.
        seed: equal seeds draw the same users and weights of the seeds.
    """
    if not sums:
        return []
    n_users = len(sums[0].den)
    num = np.concatenate([s.num for s in sums])
    den = np.stack([s.den for s in sums])
    tops, bottoms = [], []
    for draws in user_draws(n_users, n_resamples, seed):
        tops.append(draws @ num.T)
        bottoms.append(draws @ den.T)
    top, bottom = np.concatenate(tops), np.concatenate(bottoms)
    found: list[Values] = []
    column = 0
    for index, one in enumerate(sums):
        n_seeds = len(one.num)
        weights = seed_draws(n_seeds, n_resamples, seed)
        drawn = (top[:, column : column + n_seeds] * weights).sum(axis=1)
        column += n_seeds
        usable = (bottom[:, index] > 0) & (one.n >= 2)
        found.append(drawn[usable] / bottom[usable, index])
    return found


def percentiles(drawn: Values, level: float) -> Interval:
    """Return the percentile interval of (R,) bootstrap draws; None without any."""
    if not len(drawn):
        return None
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_intervals(
    sums: Sequence[UserSums], n_resamples: int, level: float, seed: int
) -> list[Interval]:
    """Return the percentile interval of every metric in ``sums``; None below two users."""
    return [percentiles(drawn, level) for drawn in bootstrap_values(sums, n_resamples, seed)]


def p_value(drawn: Values, n_users: int) -> float | None:
    """Return the two-sided p of "the difference is zero" from its (R,) paired bootstrap draws.

    p = 2 (1 + min(draws <= 0, draws >= 0)) / (R + 1), at most 1: the level at which the percentile
    interval would just touch zero. R draws cannot show less than 2 / (R + 1). None without draws,
    and below `LEAST_USERS` users.
    """
    if not len(drawn) or n_users < LEAST_USERS:
        return None
    least = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (1 + least) / (len(drawn) + 1))


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values corrected for testing all of them at once (Holm 1979).

    With p(1) <= ... <= p(m): p'(i) = max over j <= i of min(1, (m - j + 1) p(j)). Rejecting where
    p' < alpha keeps the chance of any false rejection below alpha, whatever the dependence, as far
    as each p keeps its own.
    """
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1.0, np.sort(p) * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(steps)
    return [float(value) for value in corrected]


def smallest_resamples(n_tests: int, level: float) -> int:
    """Return how many draws let each of ``n_tests`` be shown at half of 1 - ``level`` after Holm.

    2 m / (R + 1) <= (1 - level) / 2; with fewer draws no difference could ever be significant.
    """
    return int(np.ceil(4 * n_tests / (1 - level)))


def seed_interval(values: Values, level: float) -> Interval:
    """Return Student's t interval of the mean of (S,) seed values; None below two seeds."""
    n = len(values)
    if n < 2:
        return None
    half = stdtrit(n - 1, (1 + level) / 2) * values.std(ddof=1) / np.sqrt(n)
    return float(values.mean() - half), float(values.mean() + half)
