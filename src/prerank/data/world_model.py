"""The simulated world itself: items, users, and how likely each user clicks each item.

Nothing here knows of policies, logs or embeddings. The click model is a logistic over taxonomy,
brand, price and quality, on purpose not a cosine in any text space, so that a labeler is judged
against a truth that it does not share. All of it is a choice of ours (method.md marks: C).

Letters in shapes: U users, I items, S subcategories, G categories, R brands, N pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtri

from prerank import seeds
from prerank.artifacts import IntArray, TimeArray
from prerank.data.world_config import WorldConfig
from prerank.data.world_text import CATEGORY_OF

Array = NDArray[np.float64]

DAY_MS = 86_400_000
START_MS = 1_767_225_600_000
"""Midnight of 1 January 2026, UTC: the first moment of every world."""

ONSET_SPAN = 0.8
"""Further interests begin within this share of the history days, or never organically."""


@dataclass(frozen=True, eq=False)
class World:
    """Items and users with everything that decides a click.

    Attributes:
        config: the settings, among them the strengths of the click model.
        seed: root of all keyed noise.
        subcategory: (I,) int32 into ``world_text.SUBCATEGORIES``.
        brand: (I,) int32.
        price: (I,) float64 log-price, standardised inside the subcategory.
        quality: (I,) float64 standard normal.
        fame: (I,) float64 >= 0 weight with which an item is met by chance, long-tailed.
        release: (I,) int64 UTC ms; before it an item is never met.
        interest: (U, S) float64 mixture, rows sum to 1, at most ``n_interests`` entries above 0.
        onset: (U, S) float64 day from which organic history shows the interest, inf = never.
        loyalty: (U, R) float64 in [0, 1].
        price_taste: (U,) float64, on the scale of ``price``.
        activity: (U,) float64, sums to 1.
    """

    config: WorldConfig
    seed: int
    subcategory: IntArray
    brand: IntArray
    price: Array
    quality: Array
    fame: Array
    release: TimeArray
    interest: Array
    onset: Array
    loyalty: Array
    price_taste: Array
    activity: Array

    @property
    def n_users(self) -> int:
        """Number of users, U."""
        return len(self.interest)

    @property
    def n_items(self) -> int:
        """Number of items, I."""
        return len(self.subcategory)

    @cached_property
    def affinity(self) -> Array:
        """(U, S) float64 in [0, 1]: `affinity_of` all interests of each user."""
        return affinity_of(self.interest, self.config.sibling_affinity)

    def interest_of(self, user: IntArray, item: IntArray) -> Array:
        """Return how far an item's content meets its user, float64 >= 0, shape as given.

        affinity + brand_weight * loyalty + price_weight * exp(-(price - price_taste)^2 / 2)
        """
        config = self.config
        fit = np.exp(-0.5 * (self.price[item] - self.price_taste[user]) ** 2)
        content = self.affinity[user, self.subcategory[item]]
        content = content + config.brand_weight * self.loyalty[user, self.brand[item]]
        total: Array = content + config.price_weight * fit
        return total

    def utility(self, user: IntArray, item: IntArray) -> Array:
        """Return the part of the click's logit that is not the pair's own noise, (N,) float64.

        logit(base_click_rate) + content_strength * `interest_of` + quality_strength * quality
        """
        config = self.config
        base = logit(config.base_click_rate) + config.quality_strength * self.quality[item]
        total: Array = base + config.content_strength * self.interest_of(user, item)
        return total

    def click_probability(self, user: IntArray, item: IntArray) -> Array:
        """Return P(click | looked at) of each pair, (N,) float64 in (0, 1).

        The logistic of `utility` plus ``noise`` times a standard normal of the pair's own, which
        is the same at every request.

        Args:
            user: (N,) int32.
            item: (N,) int32.
        """
        own = keyed_normal(self.seed, "pair", user, item)
        probability: Array = expit(self.utility(user, item) + self.config.noise * own)
        return probability

    def released(self, time: int) -> NDArray[np.bool_]:
        """Return (I,) bool: which items exist at ``time`` (UTC ms)."""
        return self.release <= time


def affinity_of(interest_US: Array, sibling_affinity: float) -> Array:
    """Return how much each user likes each subcategory, (U, S) float64 in [0, 1].

    The weight of the interest over the user's largest one; a subcategory beside an interest, in
    the same category, has ``sibling_affinity`` times the largest there if that is more.
    """
    top = interest_US.max(axis=1, keepdims=True)
    direct = interest_US / np.where(top > 0, top, 1.0)
    starts = np.flatnonzero(np.diff(CATEGORY_OF, prepend=-1))
    category_UG = np.maximum.reduceat(direct, starts, axis=1)
    return np.maximum(direct, sibling_affinity * category_UG[:, CATEGORY_OF])


# ---- noise that belongs to keys, not to the order in which it is drawn ----------------------


def keyed_uniform(seed: int, stream: str, *keys: NDArray[np.integer]) -> Array:
    """Return one uniform in (0, 1) for each row of ``keys``, the same wherever it is asked.

    A counter-based generator (the finaliser of splitmix64 over the keys): no state, so results
    do not depend on chunks, and two policies that meet the same pair meet the same luck.
    """
    state = np.array([seeds.derive(seed, "world", stream)], dtype=np.uint64)
    for key in keys:
        state = _mix(state + np.uint64(0x9E3779B97F4A7C15) ^ _mix(key.astype(np.uint64)))
    return ((state >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def keyed_normal(seed: int, stream: str, *keys: NDArray[np.integer]) -> Array:
    """Return one standard normal for each row of ``keys``; see `keyed_uniform`."""
    normal: Array = ndtri(keyed_uniform(seed, stream, *keys))
    return normal


def keyed_gumbel(seed: int, stream: str, *keys: NDArray[np.integer]) -> Array:
    """Return one standard Gumbel for each row of ``keys``; see `keyed_uniform`."""
    return -np.log(-np.log(keyed_uniform(seed, stream, *keys)))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


# ---- building a world -----------------------------------------------------------------------


def build_world(config: WorldConfig, seed: int) -> World:
    """Draw the items and users of a world; same config and seed, same world."""
    interest, onset = _interests(config, seeds.rng(seed, "world", "interests"))
    rng = seeds.rng(seed, "world", "users")
    home = rng.random((config.n_users, config.n_brands))
    # Two or so loved brands a user: the rest are indifferent, as brands mostly are.
    loyalty = np.where(home < 2.5 / config.n_brands, rng.uniform(0.4, 1.0, home.shape), 0.0)
    activity = rng.lognormal(0.0, 0.6, config.n_users)
    return World(
        config=config,
        seed=seed,
        **_items(config, seeds.rng(seed, "world", "items")),
        interest=interest,
        onset=onset,
        loyalty=loyalty,
        price_taste=rng.normal(0.0, 1.0, config.n_users),
        activity=activity / activity.sum(),
    )


def _items(config: WorldConfig, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    n, n_subcategories = config.n_items, len(CATEGORY_OF)
    # The first S items make sure that every subcategory has an item from the first day on.
    weight = rng.dirichlet(np.full(n_subcategories, 5.0))
    drawn = rng.choice(n_subcategories, n - n_subcategories, p=weight)
    subcategory = np.concatenate([np.arange(n_subcategories), drawn]).astype(np.int32)
    n_categories = int(CATEGORY_OF.max()) + 1
    category = CATEGORY_OF[subcategory]
    # Category g has the brands g, g + G, g + 2 G ... below n_brands.
    n_own = (config.n_brands - category + n_categories - 1) // n_categories
    brand = category + n_categories * rng.integers(n_own)
    quality = rng.normal(0.0, 1.0, n)
    rho = config.fame_follows_quality
    fame = rho * quality + np.sqrt(1 - rho**2) * rng.normal(0.0, 1.0, n)
    n_days = config.n_history_days + config.n_days + 2
    new = rng.random(n) < config.new_item_share
    new[:n_subcategories] = False
    release = START_MS + np.where(new, rng.integers(1, n_days * DAY_MS, size=n), 0)
    return {
        "subcategory": subcategory,
        "brand": brand.astype(np.int32),
        "price": rng.normal(0.0, 1.0, n),
        "quality": quality,
        "fame": np.exp(config.fame_spread * fame),
        "release": release.astype(np.int64),
    }


def _interests(config: WorldConfig, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return (U, S) interest mixture and (U, S) onset day."""
    n, most, n_subcategories = config.n_users, config.n_interests, len(CATEGORY_OF)
    appeal = rng.dirichlet(np.full(n_subcategories, 3.0))
    related = related_subcategories(rng)
    chosen = np.empty((n, most), dtype=np.int64)
    chosen[:, 0] = rng.choice(n_subcategories, n, p=appeal)
    for m in range(1, most):
        earlier = chosen[np.arange(n), rng.integers(m, size=n)]
        neighbour = related[earlier, rng.integers(2, size=n)]
        anything = rng.choice(n_subcategories, n, p=appeal)
        follows = rng.random(n) < config.interest_correlation
        chosen[:, m] = np.where(follows, neighbour, anything)
    number = rng.integers(most // 2, most + 1, size=n)
    order = np.arange(most)
    weight = rng.uniform(0.6, 1.0, (n, most)) * (order < number[:, None])
    begin = rng.uniform(0.0, ONSET_SPAN * config.n_history_days, (n, most))
    late = rng.random((n, most)) < config.late_interest_share
    begin = np.where(order == 0, 0.0, np.where(late, np.inf, begin))
    begin = np.where(weight > 0, begin, np.inf)
    rows = np.repeat(np.arange(n), most)
    interest = np.zeros((n, n_subcategories))
    np.add.at(interest, (rows, chosen.ravel()), weight.ravel())
    onset = np.full((n, n_subcategories), np.inf)
    np.minimum.at(onset, (rows, chosen.ravel()), begin.ravel())
    return interest / interest.sum(axis=1, keepdims=True), onset


def related_subcategories(rng: np.random.Generator) -> IntArray:
    """Return (S, 2) int32: the two subcategories that people tend to like with each one.

    All stand on a ring that visits the categories in turn, so both neighbours belong to other
    categories: they share no word, and only people's behaviour reveals the relation.
    """
    n_categories = int(CATEGORY_OF.max()) + 1
    members = np.arange(len(CATEGORY_OF)).reshape(n_categories, -1)
    members = rng.permuted(members, axis=1)[rng.permutation(n_categories)]
    ring = members.T.ravel()
    related = np.empty((len(ring), 2), dtype=np.int32)
    related[ring, 0] = np.roll(ring, 1)
    related[ring, 1] = np.roll(ring, -1)
    return related
