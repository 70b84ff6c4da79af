"""The cascade: recall, funnel, slots, propensities, and another policy in its place."""

import numpy as np
import pytest

from prerank.artifacts import IntArray
from prerank.data.world_cascade import (
    EXPOSED,
    PRERANKED,
    RANKED,
    RECALLED,
    Memory,
    Requests,
    Traffic,
    blank_memory,
    cascade,
    clicked,
    draw_requests,
    examination,
    is_known,
    organic_day,
    recall,
    remember,
    serve,
    serve_day,
)
from prerank.data.world_config import WorldConfig
from prerank.data.world_model import DAY_MS, START_MS, Array, World, build_world

SIZES = {"n_users": 60, "n_items": 200, "n_brands": 20}
FUNNEL = {"n_recalled": 20, "n_preranked": 8, "n_ranked": 5, "n_exposed": 3}


def small_world(seed: int = 0, **settings: float) -> World:
    return build_world(WorldConfig.parse({**SIZES, **FUNNEL, **settings}), seed)


def some_requests(world: World, n: int = 50) -> Requests:
    return draw_requests(world, 0, n, 100, once=False)


def by_item(user: IntArray, item_BC: IntArray) -> Array:
    """Score = item index, for expectations one can read off."""
    return item_BC.astype(np.float64)


def test_funnel_by_hand() -> None:
    world = small_world(exploration=0.0)
    one = Requests(np.array([7]), np.array([0], np.int32), np.array([START_MS]))
    items = np.array([[3, 14, 1, 15, 9, 2, 6, 5, 35, 8, -1]], dtype=np.int32)
    traffic = cascade(world, one, items, by_item, lambda user, item: -by_item(user, item))
    # pre-ranker keeps the 8 largest: 35 15 14 9 8 6 5 3; the ranker likes the smallest of them.
    stage = dict(zip(traffic.item.tolist(), traffic.stage.tolist(), strict=True))
    assert stage == {
        **dict.fromkeys([1, 2], RECALLED),
        **dict.fromkeys([14, 15, 35], PRERANKED),
        **dict.fromkeys([8, 9], RANKED),
        **dict.fromkeys([3, 5, 6], EXPOSED),
    }
    shown = traffic.stage == EXPOSED
    order = np.argsort(traffic.position[shown])
    assert traffic.item[shown][order].tolist() == [3, 5, 6]
    assert (traffic.position[~shown] == -1).all()
    assert (traffic.click[~shown] == -1).all()
    assert np.isnan(traffic.score[traffic.stage == RECALLED]).all()
    assert traffic.score[traffic.item == 35] == -35
    assert np.isnan(traffic.propensity).all()  # no exploration, no propensity


def test_funnel_shares() -> None:
    world = small_world()
    traffic = serve(world, blank_memory(world), some_requests(world), 0)
    per_request = np.bincount(traffic.stage, minlength=4) / 50
    assert per_request.tolist() == [12, 3, 2, 3]
    slots = np.sort(traffic.position[traffic.stage == EXPOSED].reshape(50, 3), axis=1)
    assert (slots == [0, 1, 2]).all()


def test_examination_falls_with_the_slot() -> None:
    seen = examination(np.arange(4), 0.5)
    np.testing.assert_allclose(seen, [1, 2**-0.5, 3**-0.5, 0.5])
    assert (examination(np.arange(4), 0.0) == 1).all()


def test_a_click_is_attractive_and_looked_at() -> None:
    world = small_world(base_click_rate=0.5)
    traffic = serve(world, blank_memory(world), some_requests(world, 4000), 0)
    shown = traffic.stage == EXPOSED
    assert (traffic.attractive[traffic.click == 1] == 1).all()
    liked = shown & (traffic.attractive == 1)
    for slot in range(3):
        rows = liked & (traffic.position == slot)
        rate = (traffic.click[rows] == 1).mean()
        assert rate == pytest.approx((slot + 1) ** -world.config.position_bias, abs=0.03)
    assert traffic.attractive.mean() == pytest.approx(traffic.truth.mean(), abs=0.01)


def test_without_position_bias_clicks_are_attractiveness() -> None:
    world = small_world(position_bias=0.0)
    traffic = serve(world, blank_memory(world), some_requests(world), 0)
    shown = traffic.stage == EXPOSED
    np.testing.assert_array_equal(traffic.click[shown], traffic.attractive[shown])


def test_recall_is_distinct_released_and_new_to_the_user() -> None:
    world = small_world(new_item_share=0.5)
    requests = some_requests(world)
    known = np.arange(80, 120, dtype=np.int32)
    everyone = np.repeat(np.arange(world.n_users, dtype=np.int32), len(known))
    memory = remember(blank_memory(world), everyone, np.tile(known, world.n_users))
    items = recall(world, memory, requests, 0)
    assert items.shape == (50, 20)
    real = items[items >= 0]
    assert not np.isin(real, known).any()
    assert (world.release[real] <= START_MS).all()
    for row in items:
        assert len(np.unique(row[row >= 0])) == (row >= 0).sum()
    padded = items == -1
    assert (np.diff(padded.astype(int), axis=1) >= 0).all()  # padding stands at the end


def test_recall_runs_dry_in_a_tiny_shop() -> None:
    world = build_world(WorldConfig(n_users=5, n_items=80, new_item_share=0.0), 0)
    traffic = serve(world, blank_memory(world), some_requests(world, 6), 0)
    per_request = np.bincount(traffic.request - 100)
    assert (per_request <= 80).all()
    assert ((traffic.stage == EXPOSED).sum()) == 60


def test_recall_by_interest_finds_more_interests() -> None:
    world = small_world()
    requests = some_requests(world, 200)

    def affinity(**channels: float) -> float:
        other = build_world(WorldConfig.parse({**SIZES, **FUNNEL, **channels}), 0)
        items = recall(other, blank_memory(other), requests, 0)
        rows = np.repeat(requests.user, items.shape[1])[items.ravel() >= 0]
        flat = items[items >= 0]
        return float(other.affinity[rows, other.subcategory[flat]].mean())

    uniform = affinity(recall_popular=0.0, recall_interest=0.0)
    assert affinity(recall_popular=0.0, recall_interest=1.0) > 2 * uniform


def test_memory_grows_and_knows() -> None:
    memory = Memory(np.zeros(4), np.empty(0, dtype=np.int64))
    user, item = np.array([0, 1, 0], np.int32), np.array([2, 2, 1], np.int32)
    memory = remember(memory, user, item)
    assert memory.popularity.tolist() == [0, 1, 2, 0]
    asked = np.array([[0, 1, 2, 3]] * 2, dtype=np.int32)
    hits = is_known(memory, np.array([[0], [1]], dtype=np.int32), asked)
    assert hits.tolist() == [[False, True, True, False], [False, False, True, False]]


def test_organic_positives_follow_interests_that_have_begun() -> None:
    world = build_world(WorldConfig(n_users=500, late_interest_share=1.0, organic_per_user=300), 0)
    found = organic_day(world, blank_memory(world), 0)
    assert ((found.time >= START_MS) & (found.time < START_MS + DAY_MS)).all()
    first = world.onset[found.user, world.subcategory[found.item]] == 0
    late = ~first & (world.interest[found.user, world.subcategory[found.item]] > 0)
    assert first.mean() > 0.3
    assert late.mean() < 0.1


def propensity_by_brute_force(score: Array, noisy: Array, k: int, temperature: float) -> Array:
    chance = np.empty(len(score))
    for i in range(len(score)):
        others = np.sort(np.delete(noisy, i))[::-1]
        chance[i] = 1 - np.exp(-np.exp((score[i] - others[k - 1]) / temperature))
    return chance


def test_propensity_is_exact_for_an_exposed_item() -> None:
    from prerank.data.world_cascade import _propensity

    rng = np.random.default_rng(0)
    score = rng.normal(size=(1, 6))
    noisy = score + 0.7 * rng.gumbel(size=(1, 6))
    found = _propensity(score, noisy, 2, 0.7)[0]
    shown = np.argsort(-noisy[0])[:2]
    expected = propensity_by_brute_force(score[0], noisy[0], 2, 0.7)
    np.testing.assert_allclose(found[shown], expected[shown])


def test_inverse_propensity_counts_the_ranked_list() -> None:
    # The sum of 1 / propensity over the exposed is unbiased for the number that could be exposed.
    # A steady score keeps its variance small enough to see.
    world = small_world(exploration=1.0)
    requests = some_requests(world, 3000)

    def flat(user: IntArray, item_BC: IntArray) -> Array:
        return (item_BC % 3).astype(np.float64) / 3

    traffic = serve(world, blank_memory(world), requests, 0, prerank=by_item, rank=flat)
    shown = traffic.stage == EXPOSED
    estimate = (1 / traffic.propensity[shown].astype(np.float64)).sum() / 3000
    assert estimate == pytest.approx(world.config.n_preranked, rel=0.03)


def test_all_that_fits_on_the_page_has_propensity_one() -> None:
    world = small_world(n_preranked=3, n_ranked=3, n_exposed=3)
    traffic = serve(world, blank_memory(world), some_requests(world), 0)
    assert (traffic.propensity[traffic.stage == EXPOSED] == 1).all()


def test_chunks_change_nothing() -> None:
    requests = some_requests(small_world())
    found = []
    for size in (1, 7, 512):
        world = small_world(chunk_requests=size)
        organic = organic_day(world, blank_memory(world), 3)
        found.append((serve(world, blank_memory(world), requests, 3), organic))
    for traffic, organic in found[1:]:
        for table, first in ((traffic, found[0][0]), (organic, found[0][1])):
            for name, column in table.columns().items():
                np.testing.assert_array_equal(column, first.columns()[name])


def oracle(world: World) -> object:
    def score(user: IntArray, item_BC: IntArray) -> Array:
        return world.click_probability(np.broadcast_to(user[:, None], item_BC.shape), item_BC)

    return score


def attractive_per_request(traffic: Traffic, n: int) -> float:
    return float(traffic.truth[traffic.stage == EXPOSED].sum() / n)


def test_another_policy_meets_the_same_recall_and_the_same_luck() -> None:
    world = small_world(n_recalled=40)
    requests = some_requests(world, 300)
    memory = blank_memory(world)
    ours, after = serve_day(world, memory, requests, 0, prerank=oracle(world))
    theirs, _ = serve_day(world, memory, requests, 0)
    np.testing.assert_array_equal(ours.item, theirs.item)
    np.testing.assert_array_equal(ours.attractive, theirs.attractive)
    assert attractive_per_request(ours, 300) > attractive_per_request(theirs, 300)
    assert after.popularity.sum() == (ours.click == 1).sum() == len(clicked(ours))


def test_requests_once_a_user() -> None:
    world = small_world()
    requests = draw_requests(world, 4, 1000, 10, once=True)
    assert sorted(requests.user.tolist()) == list(range(60))
    assert requests.request.tolist() == list(range(10, 70))
    assert (np.diff(requests.time) >= 0).all()
    assert requests.time[0] >= START_MS + 4 * DAY_MS
    assert requests.time[-1] < START_MS + 5 * DAY_MS
