"""A shop whose clicks are known from data: a truth over user-item pairs behind the same cascade.

The counterpart of `world_model` for real labels. Pairs without a known label are never recalled:
nobody would know what to answer. All else of the cascade (production policy, slots, pages, keyed
luck) is `world_cascade`.

Letters in shapes: U users, I items, N known pairs, B requests, C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prerank import seeds
from prerank.artifacts import ByteArray, IntArray, TimeArray, require
from prerank.data.simulate_config import TruthConfig
from prerank.data.unexposed import contains, pair_keys
from prerank.data.world_cascade import PAD, Memory, Positives, Requests, is_known
from prerank.data.world_config import WorldConfig
from prerank.data.world_model import DAY_MS, START_MS, Array, keyed_gumbel, keyed_uniform


@dataclass(frozen=True, eq=False)
class Truth:
    """What users would click, and the funnel they are served by; a `Shop`.

    Attributes:
        config: funnel, slots, production policy; its user and item model is not used.
        settings: of the truth.
        seed: root of all keyed luck.
        user, item: (N,) int32 known pairs, unique, sorted by user then item.
        click: (N,) int8, 1 where the user clicks the item on looking at it.
        release: (I,) int64 UTC ms; before it an item is never met.
        activity: (U,) float64, sums to 1; users without a known pair never come.
    """

    config: WorldConfig
    settings: TruthConfig
    seed: int
    user: IntArray
    item: IntArray
    click: ByteArray
    release: TimeArray
    activity: Array
    keys: TimeArray = field(repr=False)
    offsets: TimeArray = field(repr=False)

    @property
    def n_users(self) -> int:
        """Number of users, U."""
        return len(self.activity)

    @property
    def n_items(self) -> int:
        """Number of items, I."""
        return len(self.release)

    def released(self, time: int) -> NDArray[np.bool_]:
        """Return which items exist at ``time``, (I,) bool."""
        return np.asarray(self.release <= time)

    def click_probability(self, user: IntArray, item: IntArray) -> Array:
        """Return 1 where the pair is known to be clicked, else 0; any shape, float64."""
        key = pair_keys(user, item)
        place = np.minimum(np.searchsorted(self.keys, key), len(self.keys) - 1)
        return np.where(self.keys[place] == key, self.click[place], 0).astype(np.float64)

    def utility(self, user: IntArray, item: IntArray) -> Array:
        """Return ``utility_gap`` for clicked pairs and 0 for others, before models' errors."""
        gap: Array = self.settings.utility_gap * self.click_probability(user, item)
        return gap

    def organic_day(self, memory: Memory, day: int) -> Positives:
        """Return the positives of one day that no recommendation led to.

        A positive not yet known is found with a chance that brings the mean user to
        ``history_share`` after ``n_history_days``; widely clicked items are found sooner, by the
        square root of their clicks.
        """
        fame = np.sqrt(np.bincount(self.item[self.click == 1], minlength=self.n_items) + 1.0)
        rows = np.flatnonzero(self.click == 1)
        user, item = self.user[rows], self.item[rows]
        weight = fame[item] / fame[item].mean()
        rate = -np.log1p(-self.settings.history_share) / self.settings.n_history_days
        days = np.full(len(rows), day)
        lucky = keyed_uniform(self.seed, "organic", days, user, item) < -np.expm1(-rate * weight)
        lucky &= self.release[item] <= START_MS + day * DAY_MS
        lucky &= ~contains(memory.known, pair_keys(user, item))
        moment = keyed_uniform(self.seed, "organic-time", days, user, item)[lucky]
        time = START_MS + day * DAY_MS + (moment * DAY_MS).astype(np.int64)
        return Positives(user[lucky], item[lucky], time)

    def recall(self, memory: Memory, requests: Requests, day: int) -> IntArray:
        """Return up to ``n_recalled`` known pairs of each request's user, (B, C) int32, -1 = pad.

        Drawn without replacement, ``recall_popular`` of the weight by production popularity, the
        rest evenly. Items that the user took before are left out.
        """
        start, end = self.offsets[requests.user], self.offsets[requests.user + 1]
        width = int((end - start).max(initial=0))
        row = start[:, None] + np.arange(width)
        inside = row < end[:, None]
        item = np.where(inside, self.item[np.where(inside, row, 0)], 0)
        here = self.released(START_MS + day * DAY_MS)
        usable = inside & here[item] & ~is_known(memory, requests.user[:, None], item)
        share = self.config.recall_popular
        heat = memory.popularity + 1.0
        weight = share * heat / heat.mean() + (1 - share)
        luck = keyed_gumbel(self.seed, "recall", requests.request[:, None], item)
        score = np.where(usable, np.log(weight)[item] + luck, -np.inf)
        best = np.argsort(-score, axis=1, kind="stable")[:, : self.config.n_recalled]
        drawn = np.take_along_axis(score, best, axis=1)
        chosen = np.take_along_axis(item, best, axis=1)
        return np.where(np.isfinite(drawn), chosen, PAD).astype(np.int32)


def build_truth(
    config: WorldConfig,
    settings: TruthConfig,
    n_users: int,
    n_items: int,
    user: IntArray,
    item: IntArray,
    click: ByteArray,
    n_days: int,
    seed: int,
) -> Truth:
    """Return the shop of known pairs, with activity and releases drawn from ``seed``.

    Args:
        config: funnel and production policy.
        settings: of the truth.
        n_users, n_items: U and I.
        user, item, click: (N,) the known pairs, each once, in any order.
        n_days: days over which new items are released.
        seed: same input, same shop.

    Raises:
        DataError: no pair is known, a pair is listed twice, or a click is neither 0 nor 1.
    """
    keys = pair_keys(user, item)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    require(len(keys) > 0, "no pair has a known click", where="truth")
    require((np.diff(keys) > 0).all(), "a pair is listed twice", where="truth")
    require(np.isin(click, (0, 1)).all(), "click out of range", where="truth", must="0 or 1")
    rng = seeds.rng(seed, "truth")
    offsets = np.searchsorted(user[order], np.arange(n_users + 1)).astype(np.int64)
    activity = rng.lognormal(0.0, 0.6, n_users) * (np.diff(offsets) > 0)
    new = rng.random(n_items) < settings.new_item_share
    release = START_MS + np.where(new, rng.integers(1, n_days * DAY_MS, size=n_items), 0)
    return Truth(
        config=config,
        settings=settings,
        seed=seed,
        user=user[order].astype(np.int32),
        item=item[order].astype(np.int32),
        click=click[order].astype(np.int8),
        release=release.astype(np.int64),
        activity=activity / activity.sum(),
        keys=keys,
        offsets=offsets,
    )
