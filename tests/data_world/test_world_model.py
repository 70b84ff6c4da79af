"""The click model by hand, and what the keyed noise promises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.data.world_config import WorldConfig
from prerank.data.world_model import (
    START_MS,
    World,
    affinity_of,
    build_world,
    keyed_gumbel,
    keyed_normal,
    keyed_uniform,
    related_subcategories,
)
from prerank.data.world_text import CATEGORY_OF, SUBCATEGORIES
from prerank.errors import ConfigError

N_SUBCATEGORIES = len(SUBCATEGORIES)


def two_item_world(**settings: float) -> World:
    """One user who loves camping (subcategory 0); items: camping, coffee, hiking."""
    config = WorldConfig(
        n_users=1,
        base_click_rate=0.5,
        content_strength=settings.pop("content_strength", 2.0),
        quality_strength=1.0,
        brand_weight=0.5,
        price_weight=0.25,
        sibling_affinity=0.5,
        noise=settings.pop("noise", 0.0),
    )
    interest = np.zeros((1, N_SUBCATEGORIES))
    interest[0, 0] = 1.0
    return World(
        config=config,
        seed=0,
        subcategory=np.array([0, 9, 1], dtype=np.int32),
        brand=np.array([0, 1, 1], dtype=np.int32),
        price=np.array([0.0, 0.0, 2.0]),
        quality=np.array([0.0, -1.0, 1.0]),
        fame=np.ones(3),
        release=np.full(3, START_MS),
        interest=interest,
        onset=np.zeros_like(interest),
        loyalty=np.array([[1.0, 0.0]]),
        price_taste=np.zeros(1),
        activity=np.ones(1),
    )


def sigmoid(x: float) -> float:
    return 1 / (1 + np.exp(-x))


USER, ITEM = np.zeros(3, dtype=np.int32), np.arange(3, dtype=np.int32)


def test_click_probability_by_hand() -> None:
    # base logit(.5) = 0, quality_strength 1, content_strength 2:
    # camping: interest 1 + brand .5 * 1 + price .25 * exp(0);                       quality  0
    # coffee:  no interest, no loyalty, price .25 * exp(0);                          quality -1
    # hiking:  sibling .5 * 1, no loyalty, price .25 * exp(-2);                      quality +1
    expected = [
        sigmoid(2 * (1 + 0.5 + 0.25)),
        sigmoid(2 * 0.25 - 1),
        sigmoid(2 * (0.5 + 0.25 * np.exp(-2)) + 1),
    ]
    np.testing.assert_allclose(two_item_world().click_probability(USER, ITEM), expected)


def test_without_content_strength_only_quality_counts() -> None:
    found = two_item_world(content_strength=0.0).click_probability(USER, ITEM)
    np.testing.assert_allclose(found, [sigmoid(0), sigmoid(-1), sigmoid(1)])


def test_noise_belongs_to_the_pair() -> None:
    world = two_item_world(noise=1.0)
    once = world.click_probability(USER, ITEM)
    again = world.click_probability(USER[:1], ITEM[2:])
    assert once[2] == again[0]
    assert not np.allclose(once, two_item_world().click_probability(USER, ITEM))


def test_affinity_takes_the_larger_of_own_weight_and_sibling() -> None:
    interest = np.zeros((1, N_SUBCATEGORIES))
    interest[0, [0, 1, 8]] = [0.5, 0.1, 0.4]
    affinity = affinity_of(interest, 0.5)[0]
    assert affinity[0] == 1.0
    assert affinity[1] == 0.5  # sibling of 0: .5 * 1 beats its own .1 / .5
    assert affinity[3] == 0.5
    assert affinity[8] == 0.8
    assert affinity[9] == pytest.approx(0.4)  # sibling of 8: .5 * .8
    assert affinity[20] == 0.0


def test_no_interest_is_no_affinity() -> None:
    assert not affinity_of(np.zeros((2, N_SUBCATEGORIES)), 0.35).any()


def test_related_subcategories_are_mutual_and_of_other_categories() -> None:
    related = related_subcategories(np.random.default_rng(0))
    own = np.arange(N_SUBCATEGORIES)
    assert (CATEGORY_OF[related] != CATEGORY_OF[own][:, None]).all()
    assert (related[related[:, 1], 0] == own).all()
    assert (related[:, 0] != related[:, 1]).all()


def related_share(config: WorldConfig) -> float:
    """Share of users whose interests hold at least one pair that is common among all users."""
    held = build_world(config, 3).interest > 0
    together = (held.T.astype(float) @ held) - np.diag(held.sum(axis=0))
    return float(np.sort(together, axis=1)[:, -2:].sum() / together.sum())


def test_users_have_as_many_interests_as_asked() -> None:
    config = WorldConfig(n_users=500, n_interests=12, interest_correlation=0.0)
    number = (build_world(config, 0).interest > 0).sum(axis=1)
    # Six to twelve are drawn; some are drawn twice and meet in one.
    assert number.max() == 12
    assert 7.5 < number.mean() < 9
    assert (number < 6).mean() < 0.1


def test_interest_correlation_makes_co_interests() -> None:
    loose = related_share(WorldConfig(n_users=4000, interest_correlation=0.0))
    tight = related_share(WorldConfig(n_users=4000, interest_correlation=0.9))
    assert tight > 2 * loose


def test_build_world_keeps_its_own_rules() -> None:
    config = WorldConfig(n_users=300, n_items=200, n_brands=20)
    world = build_world(config, 1)
    np.testing.assert_allclose(world.interest.sum(axis=1), 1)
    assert set(np.unique((world.interest > 0).sum(axis=1))) <= {1, 2, 3, 4}
    assert (np.unique(world.subcategory) == np.arange(N_SUBCATEGORIES)).all()
    assert (world.brand % 10 == CATEGORY_OF[world.subcategory]).all()  # a brand serves one category
    assert (world.onset.min(axis=1) == 0).all()  # every user has an interest from the first day
    assert np.isinf(world.onset[world.interest == 0]).all()
    late = np.isinf(world.onset) & (world.interest > 0)
    assert late.any()
    assert not world.released(START_MS).all()
    assert world.released(START_MS)[:N_SUBCATEGORIES].all()


def test_brands_that_do_not_divide_evenly_stay_in_range() -> None:
    world = build_world(WorldConfig(n_users=5, n_items=100, n_brands=13), 0)
    assert world.brand.max() < 13
    assert (world.brand % 10 == CATEGORY_OF[world.subcategory]).all()


def explained(world: World, group: np.ndarray) -> float:
    """Share of the variance of single users' click logits that a grouping of items explains."""
    user = np.repeat(np.arange(world.n_users, dtype=np.int32), world.n_items)
    item = np.tile(np.arange(world.n_items, dtype=np.int32), world.n_users)
    p = world.click_probability(user, item)
    logit = np.log(p / (1 - p)) - world.config.quality_strength * world.quality[item]
    cell = user.astype(np.int64) * (group.max() + 1) + group[item]
    size = np.bincount(cell)
    mean = np.bincount(cell, logit) / np.maximum(size, 1)
    inside = np.mean((logit - mean[cell]) ** 2)
    cells = (size > 0).sum()
    return float(1 - inside / logit.var() * len(cell) / (len(cell) - cells))  # adjusted R2


def test_content_strength_zero_leaves_no_trace_of_content() -> None:
    sizes = {"n_users": 40, "n_items": 1000}
    none = build_world(WorldConfig(content_strength=0.0, **sizes), 0)
    full = build_world(WorldConfig(**sizes), 0)
    for group in (none.subcategory, CATEGORY_OF[none.subcategory], none.brand):
        assert abs(explained(none, group)) < 0.01
    assert explained(full, full.subcategory) > 0.3
    assert explained(full, full.brand) > 0.05


@given(st.integers(0, 2**62), st.lists(st.integers(0, 2**40), min_size=1, max_size=30))
def test_keyed_uniform_depends_on_key_alone(seed: int, keys: list[int]) -> None:
    key = np.array(keys)
    whole = keyed_uniform(seed, "stream", key)
    assert ((whole > 0) & (whole < 1)).all()
    np.testing.assert_array_equal(whole[::-1], keyed_uniform(seed, "stream", key[::-1]))
    np.testing.assert_array_equal(whole[-1:], keyed_uniform(seed, "stream", key[-1:]))


def test_keyed_noise_has_the_right_shape() -> None:
    row, column = np.arange(400)[:, None], np.arange(500)[None, :]
    uniform = keyed_uniform(7, "a", row, column)
    counts = np.histogram(uniform, bins=20, range=(0, 1))[0]
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 60  # chi-square, 19 degrees: p about 1e-6
    assert abs(np.corrcoef(uniform[:-1].ravel(), uniform[1:].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(uniform[:, :-1].ravel(), uniform[:, 1:].ravel())[0, 1]) < 0.01
    other = keyed_uniform(7, "b", row, column)
    assert abs(np.corrcoef(uniform.ravel(), other.ravel())[0, 1]) < 0.01
    normal = keyed_normal(7, "a", row, column)
    assert abs(normal.mean()) < 0.01
    assert abs(normal.std() - 1) < 0.01
    assert abs(keyed_gumbel(7, "a", row, column).mean() - np.euler_gamma) < 0.01


def test_keys_do_not_commute() -> None:
    a, b = np.array([1, 2]), np.array([2, 1])
    x = keyed_uniform(0, "s", a, b)
    assert x[0] != x[1]


def test_a_funnel_that_widens_is_refused() -> None:
    with pytest.raises(ConfigError, match="n_recalled"):
        WorldConfig.parse({"n_ranked": 50})
    with pytest.raises(ConfigError, match="recall_popular"):
        WorldConfig.parse({"recall_popular": 0.8})
