"""The simulated shop's traffic: organic discovery, and the cascade that serves requests.

A cascade is recall -> pre-rank -> rank -> expose. Pre-ranker and ranker are plain functions
(`Scorer`), so that another policy can take the place of the production one (a simulated A/B).
All luck is keyed (`world_model.keyed_uniform`): two policies that serve the same requests recall
the same items and meet the same clicks, which makes their difference precise.

Letters in shapes: B requests, C candidates of a request, N rows, U users, I items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from prerank import seeds
from prerank.artifacts import ByteArray, FloatArray, IntArray, Table, TimeArray
from prerank.data.unexposed import pair_keys
from prerank.data.world_config import WorldConfig
from prerank.data.world_model import (
    DAY_MS,
    START_MS,
    Array,
    World,
    affinity_of,
    keyed_gumbel,
    keyed_normal,
    keyed_uniform,
)
from prerank.data.world_text import CATEGORY_OF

Scorer = Callable[[IntArray, IntArray], NDArray[np.floating]]
"""``score(user (B,), item (B, C)) -> (B, C)``, larger is better; a row is one request."""

Recall = Callable[["Memory", "Requests", int], IntArray]
"""``recall(memory, requests (B,), day) -> (B, C)`` distinct items of each request, -1 = padding."""

STAGES = ("recalled", "pre-ranked", "ranked", "exposed")
RECALLED, PRERANKED, RANKED, EXPOSED = 0, 1, 2, 3
PAD = -1
N_BROWSED = 8
"""Items that a user looks over for each organic positive."""
OVERDRAW = 1.5
"""Recall draws this many times `n_recalled`, because repeats and known items fall out."""
PAGE_ID = 1 << 40
"""The request id of a visit's page p is that of its first page + p times this."""
PAGE_MS = 60_000
"""A visit's next page comes this much later."""


class Shop(Protocol):
    """What a cascade must know of a shop: a `World`, or a known truth (`prerank.data.truth`)."""

    @property
    def config(self) -> WorldConfig:
        """Funnel, slots and production policy."""

    @property
    def seed(self) -> int:
        """Root of all keyed luck."""

    @property
    def n_users(self) -> int:
        """Number of users, U."""

    @property
    def n_items(self) -> int:
        """Number of items, I."""

    @property
    def activity(self) -> Array:
        """(U,) float64, sums to 1."""

    def utility(self, user: IntArray, item: IntArray) -> Array:
        """Return what a perfect model would know of each pair, on a logit scale."""

    def click_probability(self, user: IntArray, item: IntArray) -> Array:
        """Return P(click | looked at) of each pair."""


@dataclass(frozen=True, eq=False)
class Memory:
    """What production knows at the start of a day.

    Attributes:
        popularity: (I,) float64 positives so far, organic and clicked.
        known: (P,) int64 sorted keys of pairs with a positive; they are not recalled again.
    """

    popularity: Array
    known: TimeArray


@dataclass(frozen=True, eq=False)
class Requests(Table):
    """Visits of users.

    Attributes:
        request: (N,) int64 id, unique in a world's life.
        user: (N,) int32.
        time: (N,) int64 UTC ms.
    """

    request: TimeArray
    user: IntArray
    time: TimeArray


@dataclass(frozen=True, eq=False)
class Positives(Table):
    """Positive interactions: user (N,) int32, item (N,) int32, time (N,) int64 UTC ms."""

    user: IntArray
    item: IntArray
    time: TimeArray


@dataclass(frozen=True, eq=False)
class Traffic(Table):
    """What happened to every recalled item of the requests served, one row each.

    Attributes:
        request, user, item, time: as in Requests.
        stage: (N,) int8 deepest stage reached, into ``STAGES``.
        score: (N,) float32 of the ranker; NaN where the pre-ranker had dropped the item.
        position: (N,) int32 slot from 0, -1 if not exposed.
        propensity: (N,) float32 chance that the ranker's exploration exposes the item, given all
            else; NaN if not exposed or if the policy does not explore.
        truth: (N,) float32 P(click | looked at).
        attractive: (N,) int8 1 if the user would click the item on looking at it.
        click: (N,) int8 1 if looked at and attractive, 0 if exposed without a click, -1 else.
    """

    request: TimeArray
    user: IntArray
    item: IntArray
    time: TimeArray
    stage: ByteArray
    score: FloatArray
    position: IntArray
    propensity: FloatArray
    truth: FloatArray
    attractive: ByteArray
    click: ByteArray


AnyTable = TypeVar("AnyTable", Positives, Traffic)


def join(kind: type[AnyTable], parts: Iterable[AnyTable]) -> AnyTable:
    """Return the rows of all ``parts``, at least one, in order."""
    rows = list(parts)
    names = [field.name for field in fields(kind)]
    return kind(**{name: np.concatenate([getattr(r, name) for r in rows]) for name in names})


def blank_memory(world: Shop) -> Memory:
    """Return the memory of a shop that has just opened."""
    return Memory(np.zeros(world.n_items), np.empty(0, dtype=np.int64))


def remember(memory: Memory, user: IntArray, item: IntArray) -> Memory:
    """Return ``memory`` with the positives (user (N,), item (N,)) added."""
    n_items = len(memory.popularity)
    return Memory(
        popularity=memory.popularity + np.bincount(item, minlength=n_items),
        known=np.sort(np.concatenate([memory.known, pair_keys(user, item)]), kind="stable"),
    )


def is_known(memory: Memory, user: IntArray, item: IntArray) -> NDArray[np.bool_]:
    """Return which pairs (broadcast user and item) have a positive already."""
    keys = pair_keys(np.broadcast_to(user, item.shape), item)
    if not len(memory.known):
        return np.zeros(item.shape, dtype=np.bool_)
    place = np.minimum(np.searchsorted(memory.known, keys), len(memory.known) - 1)
    hit: NDArray[np.bool_] = memory.known[place] == keys
    return hit


# ---- drawing items --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Shelves:
    """Items by subcategory with cumulative weights, for drawing inside one or over all."""

    order: IntArray
    edges: TimeArray
    total: Array

    @classmethod
    def of(cls, world: World, weight: Array) -> _Shelves:
        # Earliest release last: the last item of a shelf is always there, so that a draw which
        # rounds onto the upper edge never meets an item of weight 0.
        order = np.lexsort((-world.release, world.subcategory)).astype(np.int32)
        edges = np.searchsorted(world.subcategory[order], np.arange(len(CATEGORY_OF) + 1))
        return cls(order, edges.astype(np.int64), np.append(0.0, np.cumsum(weight[order])))

    def draw(self, subcategory: IntArray, uniform: Array) -> IntArray:
        """Return an item of each given subcategory, drawn by weight."""
        return self._between(self.edges[subcategory], self.edges[subcategory + 1], uniform)

    def draw_any(self, uniform: Array) -> IntArray:
        """Return items drawn by weight among all."""
        return self._between(np.int64(0), np.int64(len(self.order)), uniform)

    def _between(
        self, start: TimeArray | np.int64, end: TimeArray | np.int64, uniform: Array
    ) -> IntArray:
        low, high = self.total[start], self.total[end]
        place = np.searchsorted(self.total, low + uniform * (high - low), side="right") - 1
        return self.order[np.clip(place, start, end - 1)]


def _intent(world: World, interest_US: Array) -> Array:
    """Return (U, S) cumulative chance that a user looks for each subcategory.

    A softmax of content_strength * affinity: no strength, no direction.
    """
    affinity = affinity_of(interest_US, world.config.sibling_affinity)
    total = np.cumsum(np.exp(world.config.content_strength * affinity), axis=1)
    intent: Array = total / total[:, -1:]
    return intent


def _draw_subcategory(intent_US: Array, user: IntArray, uniform: Array) -> IntArray:
    """Return a subcategory of each user's (N,) intent, (N,) int32."""
    below = intent_US[user] <= uniform[:, None]
    place: IntArray = np.minimum(below.sum(axis=1), intent_US.shape[1] - 1).astype(np.int32)
    return place


# ---- organic discovery ----------------------------------------------------------------------


def organic_day(world: World, memory: Memory, day: int) -> Positives:
    """Return the positives of one day that no recommendation led to (search, other channels).

    A user looks over ``N_BROWSED`` items, found by the interests that have begun and by fame
    (mildly: its square root), and takes one with chance proportional to its click probability.
    """
    config = world.config
    rng = seeds.rng(world.seed, "world", "organic", day)
    rate = config.organic_per_user / config.n_history_days * world.n_users * world.activity
    user = np.repeat(np.arange(world.n_users, dtype=np.int32), rng.poisson(rate))
    time = START_MS + day * DAY_MS + rng.integers(DAY_MS, size=len(user))
    begun = np.where(world.onset <= day, world.interest, 0.0)
    weight = np.sqrt(world.fame) * world.released(START_MS + day * DAY_MS)
    shelves, intent = _Shelves.of(world, weight), _intent(world, begun)
    event = np.arange(len(user))
    parts = [
        _browse(world, memory, shelves, intent, user[rows], day, rows)
        for rows in _chunks(event, config.chunk_requests)
    ]
    item = np.concatenate([np.empty(0, dtype=np.int32), *parts])
    return Positives(user, item, time.astype(np.int64))


def _browse(
    world: World,
    memory: Memory,
    shelves: _Shelves,
    intent_US: Array,
    user: IntArray,
    day: int,
    event: TimeArray,
) -> IntArray:
    keys = (np.full((len(user), 1), day), event[:, None], np.arange(N_BROWSED)[None, :])
    wide = np.repeat(user[:, None], N_BROWSED, axis=1)
    wish = keyed_uniform(world.seed, "shelf", *keys)
    shelf = _draw_subcategory(intent_US, wide.ravel(), wish.ravel()).reshape(wide.shape)
    item = shelves.draw(shelf, keyed_uniform(world.seed, "found", *keys))
    liking = np.log(world.click_probability(wide, item))
    liking = np.where(is_known(memory, user[:, None], item), -np.inf, liking)
    best = np.argmax(liking + keyed_gumbel(world.seed, "take", *keys), axis=1)
    taken: IntArray = item[np.arange(len(item)), best]
    return taken


# ---- the cascade ----------------------------------------------------------------------------


def draw_requests(world: Shop, day: int, n_requests: int, first: int, once: bool) -> Requests:
    """Return ``n_requests`` visits of one day in time order, ids from ``first``.

    Users come by activity; with ``once`` each at most once (and no more requests than users).
    """
    rng = seeds.rng(world.seed, "world", "requests", day)
    n = min(n_requests, world.n_users) if once else n_requests
    user = rng.choice(world.n_users, size=n, replace=not once, p=world.activity)
    time = np.sort(START_MS + day * DAY_MS + rng.integers(DAY_MS, size=n))
    return Requests(
        request=first + np.arange(n, dtype=np.int64),
        user=user.astype(np.int32),
        time=time.astype(np.int64),
    )


def recall(world: World, memory: Memory, requests: Requests, day: int) -> IntArray:
    """Return the recalled items, (B, n_recalled) int32, distinct; the rest of a row is -1.

    Three channels: production popularity, subcategories of interest (all of the user's, a
    stand-in for the many interest-aware channels of a real shop), and uniform. Items that the
    user took or clicked before are left out.
    """
    config = world.config
    n_drawn = int(np.ceil(OVERDRAW * config.n_recalled))
    request, slot = requests.request[:, None], np.arange(n_drawn)[None, :]
    uniform = keyed_uniform(world.seed, "recall", request, slot)
    channel = keyed_uniform(world.seed, "channel", request, slot)
    here = world.released(START_MS + day * DAY_MS).astype(np.float64)
    even = _Shelves.of(world, here)
    item = even.draw_any(uniform)
    popular = channel < config.recall_popular
    item[popular] = _Shelves.of(world, here * (memory.popularity + 1.0)).draw_any(uniform[popular])
    row, column = np.nonzero(~popular & (channel < config.recall_popular + config.recall_interest))
    intent = keyed_uniform(world.seed, "intent", requests.request[row], column)
    shelf = _draw_subcategory(_intent(world, world.interest), requests.user[row], intent)
    item[row, column] = even.draw(shelf, uniform[row, column])
    known = is_known(memory, requests.user[:, None], item)
    return _first_distinct(item, ~known, config.n_recalled)


def _first_distinct(item_BC: IntArray, allowed_BC: NDArray[np.bool_], n: int) -> IntArray:
    """Return each row's first ``n`` distinct allowed items in order, padded with -1."""
    order = np.argsort(item_BC, axis=1, kind="stable")
    ranked = np.take_along_axis(item_BC, order, axis=1)
    repeat = np.zeros(item_BC.shape, dtype=np.bool_)
    repeat[:, 1:] = ranked[:, 1:] == ranked[:, :-1]
    keep = np.empty_like(repeat)
    np.put_along_axis(keep, order, ~repeat, axis=1)
    keep &= allowed_BC
    place = np.cumsum(keep, axis=1) - 1
    keep &= place < n
    out = np.full((len(item_BC), n), PAD, dtype=np.int32)
    row, column = np.nonzero(keep)
    out[row, place[row, column]] = item_BC[row, column]
    return out


def production_preranker(world: Shop, memory: Memory) -> Scorer:
    """Return the production pre-ranker: popularity-heavy, with a blurred view of taste."""
    config = world.config
    return _production(
        world, memory, config.prerank_popularity, config.prerank_error, "prerank-error"
    )


def production_ranker(world: Shop, memory: Memory) -> Scorer:
    """Return the production ranker: a sharper view of taste, popularity still counts."""
    config = world.config
    return _production(world, memory, config.rank_popularity, config.rank_error, "rank-error")


def _production(
    world: Shop, memory: Memory, popularity_weight: float, error: float, stream: str
) -> Scorer:
    """Score = popularity_weight * z(log(1 + positives)) + utility + error * the pair's normal.

    A model's error is its own for good, so it is keyed by pair, not by request.
    """
    heat = np.log1p(memory.popularity)
    heat = (heat - heat.mean()) / (heat.std() or 1.0)

    def score(user: IntArray, item_BC: IntArray) -> Array:
        wide = np.broadcast_to(user[:, None], item_BC.shape)
        view = world.utility(wide, item_BC)
        view = view + error * keyed_normal(world.seed, stream, wide, item_BC)
        total: Array = popularity_weight * heat[item_BC] + view
        return total

    return score


def cascade(
    world: Shop, requests: Requests, item_BC: IntArray, prerank: Scorer, rank: Scorer
) -> Traffic:
    """Send recalled items through pre-rank, rank and exposure, and let the users react.

    Args:
        world: whose users and whose funnel sizes.
        requests: B of them.
        item_BC: (B, C) int32 distinct items of each request, -1 = padding.
        prerank: picks ``n_preranked`` of the recalled.
        rank: scores these; with Gumbel noise of temperature ``exploration``, the best
            ``n_ranked`` are ranked and the best ``n_exposed`` fill the slots in order.

    Returns:
        one row for each recalled item, request by request.
    """
    config = world.config
    real = item_BC != PAD
    item = np.where(real, item_BC, 0)
    wide = np.broadcast_to(requests.user[:, None], item.shape)
    request = np.broadcast_to(requests.request[:, None], item.shape)
    passed = real & (
        _place(np.where(real, prerank(requests.user, item), -np.inf)) < config.n_preranked
    )
    score = np.where(passed, rank(requests.user, item), -np.inf).astype(np.float64)
    noisy = score + config.exploration * keyed_gumbel(world.seed, "explore", request, item)
    place = np.where(passed, _place(noisy), item.shape[1])
    stage = passed.astype(np.int8)
    stage[passed & (place < config.n_ranked)] = RANKED
    exposed = passed & (place < config.n_exposed)
    stage[exposed] = EXPOSED
    truth = world.click_probability(wide, item)
    attractive = keyed_uniform(world.seed, "attractive", request, item) < truth
    looked = keyed_uniform(world.seed, "looked", request, item) < examination(
        np.where(exposed, place, 0), config.position_bias
    )
    click = np.where(exposed, (attractive & looked).astype(np.int8), np.int8(-1))
    propensity = _propensity(score, noisy, config.n_exposed, config.exploration)
    row, column = np.nonzero(real)
    return Traffic(
        request=requests.request[row],
        user=requests.user[row],
        item=item[row, column],
        time=requests.time[row],
        stage=stage[row, column],
        score=np.where(passed, score, np.nan)[row, column].astype(np.float32),
        position=np.where(exposed, place, -1)[row, column].astype(np.int32),
        propensity=np.where(exposed, propensity, np.nan)[row, column].astype(np.float32),
        truth=truth[row, column].astype(np.float32),
        attractive=attractive[row, column].astype(np.int8),
        click=click[row, column],
    )


def examination(position: NDArray[np.integer], position_bias: float) -> Array:
    """Return the chance that a user looks at each slot: (position + 1) ** -position_bias."""
    return np.asarray((position + 1.0) ** -position_bias, dtype=np.float64)


def _place(score_BC: NDArray[np.floating]) -> TimeArray:
    """Return the rank of each column inside its row, 0 = largest; ties by column."""
    order = np.argsort(-score_BC, axis=1, kind="stable")
    place = np.empty(score_BC.shape, dtype=np.int64)
    np.put_along_axis(place, order, np.arange(score_BC.shape[1])[None, :], axis=1)
    return place


def _propensity(score_BC: Array, noisy_BC: Array, n_exposed: int, exploration: float) -> Array:
    """Return P(among the best ``n_exposed`` | the noise of all others), NaN without noise.

    Top-k by Gumbel noise: 1 - exp(-exp((score - threshold) / temperature)), threshold = the
    (k + 1)-th largest noisy score (Kool et al. 2019, "Stochastic beams and where to find them",
    section 4.2). Weighting by its inverse is unbiased over what reached the ranker.
    """
    if exploration == 0:
        return np.full(score_BC.shape, np.nan)
    if score_BC.shape[1] <= n_exposed:
        return np.ones(score_BC.shape)
    threshold = -np.partition(-noisy_BC, n_exposed, axis=1)[:, n_exposed : n_exposed + 1]
    margin = np.where(np.isfinite(threshold), 0.0, np.inf)
    known = np.where(np.isfinite(score_BC), score_BC, 0.0)
    margin = margin + (known - np.where(np.isfinite(threshold), threshold, 0.0)) / exploration
    # Far below the threshold the chance underflows; a propensity must stay above 0.
    chance: Array = np.maximum(-np.expm1(-np.exp(np.minimum(margin, 50.0))), 1e-6)
    return chance


def serve(
    world: World,
    memory: Memory,
    requests: Requests,
    day: int,
    prerank: Scorer | None = None,
    rank: Scorer | None = None,
) -> Traffic:
    """Serve the requests of one day, in chunks, with the production policy or another.

    Args:
        world: the world.
        memory: what production knows since the day before.
        requests: of this day.
        day: counted from the world's first.
        prerank: pre-ranker in place of the production one.
        rank: ranker in place of the production one.
    """
    return serve_recalled(world, _recall_of(world), memory, requests, day, prerank, rank)


def _recall_of(world: World) -> Recall:
    return lambda memory, requests, day: recall(world, memory, requests, day)


def serve_recalled(
    shop: Shop,
    recall: Recall,
    memory: Memory,
    requests: Requests,
    day: int,
    prerank: Scorer | None = None,
    rank: Scorer | None = None,
) -> Traffic:
    """Serve requests as `serve` does, in any shop, on what ``recall`` finds."""
    first = prerank or production_preranker(shop, memory)
    second = rank or production_ranker(shop, memory)
    parts = []
    for rows in _chunks(np.arange(len(requests)), shop.config.chunk_requests):
        some = _rows(requests, rows)
        parts.append(cascade(shop, some, recall(memory, some, day), first, second))
    return join(Traffic, parts)


def _rows(requests: Requests, rows: NDArray[np.intp] | TimeArray) -> Requests:
    return Requests(requests.request[rows], requests.user[rows], requests.time[rows])


def serve_visits(
    shop: Shop,
    recall: Recall,
    memory: Memory,
    requests: Requests,
    day: int,
    prerank: Scorer | None = None,
    rank: Scorer | None = None,
) -> Traffic:
    """Serve visits of one day, page by page, until nobody asks for more or ``max_pages``.

    After a page with c clicks a user asks for the next with probability
    min(1, next_page_rate + next_page_per_click * c): satisfied users see more. What an earlier
    page of the day showed to a user is not recalled for a later one. Page p of a visit has the
    request id of its first page + p * ``PAGE_ID``.
    """
    config, seen = shop.config, memory
    pages: list[Traffic] = []
    for page in range(config.max_pages):
        if page:
            shown = pages[-1].stage == EXPOSED
            seen = _with_known(seen, pages[-1].user[shown], pages[-1].item[shown])
            requests = _next_page(shop, pages[-1], requests)
        if not len(requests):
            break
        pages.append(serve_recalled(shop, recall, seen, requests, day, prerank, rank))
    return pages[0] if len(pages) == 1 else join(Traffic, pages)


def _with_known(memory: Memory, user: IntArray, item: IntArray) -> Memory:
    known = np.concatenate([memory.known, pair_keys(user, item)])
    return Memory(memory.popularity, np.sort(known, kind="stable"))


def _next_page(shop: Shop, page: Traffic, requests: Requests) -> Requests:
    """Return the requests whose users go on, as requests for their next page."""
    config, order = shop.config, np.argsort(requests.request, kind="stable")
    hit = page.request[page.click == 1]
    clicks = np.zeros(len(requests), dtype=np.int64)
    place = order[np.searchsorted(requests.request, hit, sorter=order)]
    clicks += np.bincount(place, minlength=len(requests))
    chance = np.minimum(1.0, config.next_page_rate + config.next_page_per_click * clicks)
    on = np.flatnonzero(keyed_uniform(shop.seed, "next-page", requests.request) < chance)
    # A day's traffic stays inside its day: the next morning's models must not know tomorrow.
    last = requests.time[on] // DAY_MS * DAY_MS + DAY_MS - 1
    return Requests(
        request=requests.request[on] + PAGE_ID,
        user=requests.user[on],
        time=np.minimum(requests.time[on] + PAGE_MS, last),
    )


def clicked(traffic: Traffic) -> Positives:
    """Return the clicked exposures as positives."""
    hit = traffic.click == 1
    return Positives(traffic.user[hit], traffic.item[hit], traffic.time[hit])


def serve_day(
    world: World,
    memory: Memory,
    requests: Requests,
    day: int,
    prerank: Scorer | None = None,
    rank: Scorer | None = None,
) -> tuple[Traffic, Memory]:
    """Serve one day with `serve_visits`; return what happened and the memory that clicks leave."""
    traffic = serve_visits(world, _recall_of(world), memory, requests, day, prerank, rank)
    taken = clicked(traffic)
    return traffic, remember(memory, taken.user, taken.item)


def _chunks(index: TimeArray, size: int) -> list[TimeArray]:
    return [index[start : start + size] for start in range(0, len(index), size)]
