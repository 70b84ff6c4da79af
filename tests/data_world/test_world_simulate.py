"""The logs that a world leaves: invariants, determinism, no leak, and a strong exposure bias."""

import functools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prerank import store
from prerank.artifacts import TEST, TRAIN, VALIDATION, Dataset
from prerank.data.unexposed import exposure_counts, pair_keys, unexposed_pairs
from prerank.data.world import (
    World,
    WorldConfig,
    build_world,
    draw_requests,
    exposure_share,
    live,
    serve_day,
    simulate,
)
from prerank.data.world_model import START_MS
from prerank.data.world_text import CATEGORIES, SUBCATEGORIES, brand_names, item_texts

EXPOSED_POOL, UNEXPOSED_POOL = 0, 1
CONFIG = WorldConfig(
    n_users=300, n_items=600, n_history_days=10, n_days=3, n_eval_requests=200, requests_per_user=6
)


@functools.cache
def dataset() -> Dataset:
    return simulate(CONFIG, 0)


@functools.cache
def world() -> World:
    return build_world(CONFIG, 0)


def test_sizes() -> None:
    data = dataset()
    train = data.exposures.split == TRAIN
    assert train.sum() == 300 * 6 * 10
    assert (data.exposures.split == VALIDATION).sum() == 2000
    assert (data.exposures.split == TEST).sum() == 2000
    assert len(data.candidates) <= 300 * 6 * 100
    assert len(np.unique(data.candidates.request)) == 1800
    assert len(data.users) == 300
    assert len(data.items) == 600


def test_same_seed_same_bytes() -> None:
    first, again = dataset(), simulate(CONFIG, 0)
    other = simulate(CONFIG, 1)
    for name in ("exposures", "candidates", "interactions", "pools"):
        for column, values in getattr(first, name).columns().items():
            np.testing.assert_array_equal(getattr(getattr(again, name), column), values)
    assert first.catalog.title.tolist() == again.catalog.title.tolist()
    assert first.notes == again.notes
    assert first.catalog.title.tolist() != other.catalog.title.tolist()


def test_survives_the_store(tmp_path: Path) -> None:
    store.save(tmp_path, dataset())
    back = store.load(tmp_path, Dataset)
    np.testing.assert_array_equal(back.pools.click, dataset().pools.click)
    assert back.notes == dataset().notes


def test_nothing_known_before_its_time() -> None:
    data, cuts = dataset(), dataset().cuts
    assert cuts.anchors < cuts.validation < cuts.test
    assert data.interactions.time.max() < cuts.test
    assert data.interactions.time.min() >= START_MS
    assert data.exposures.time.min() >= cuts.anchors
    assert data.candidates.time.min() >= cuts.anchors
    assert data.candidates.time.max() < cuts.validation
    for split, low, high in ((VALIDATION, cuts.validation, cuts.test), (TEST, cuts.test, None)):
        time = data.pools.time[data.pools.split == split]
        assert time.min() >= low
        assert high is None or time.max() < high
    released = world().release
    assert (released[data.exposures.item] <= data.exposures.time).all()
    assert (released[data.interactions.item] <= data.interactions.time).all()


def test_interactions_are_organic_or_clicked() -> None:
    data = dataset()
    clicks = (data.exposures.click == 1) & (data.exposures.split != TEST)
    key = pair_keys(data.interactions.user, data.interactions.item)
    clicked = pair_keys(data.exposures.user[clicks], data.exposures.item[clicks])
    assert np.isin(clicked, key).all()
    before = data.interactions.time < data.cuts.anchors
    assert 0.4 < before.mean() < 0.95
    mean = before.sum() / CONFIG.n_users
    assert mean == pytest.approx(CONFIG.organic_per_user, rel=0.1)


def test_unexposed_pool_was_shown_to_that_user_never() -> None:
    data, pools = dataset(), dataset().pools
    assert pools.pools == ("exposed", "unexposed")
    rows = pools.pool == UNEXPOSED_POOL
    shown = pair_keys(data.exposures.user, data.exposures.item)
    assert not np.isin(pair_keys(pools.user[rows], pools.item[rows]), shown).any()
    key = pools.request.astype(np.int64) << 32 | pools.item
    assert len(np.unique(key)) == len(key)


def test_unexposed_truth_is_drawn_from_the_click_model() -> None:
    pools = dataset().pools
    rows = pools.pool == UNEXPOSED_POOL
    p = world().click_probability(pools.user[rows], pools.item[rows])
    click = pools.click[rows]
    spread = np.sqrt((p * (1 - p)).sum())
    assert abs(click.sum() - p.sum()) < 4 * spread
    high = p > np.quantile(p, 0.9)
    assert click[high].mean() == pytest.approx(p[high].mean(), abs=0.05)


def test_exposed_pool_holds_the_logged_clicks() -> None:
    data = dataset()
    rows = (data.pools.pool == EXPOSED_POOL) & (data.pools.split == TEST)
    logged = data.exposures.split == TEST
    assert rows.sum() == logged.sum()
    assert data.pools.click[rows].sum() == data.exposures.click[logged].sum()


def test_exposures_by_request_and_slot() -> None:
    shown = dataset().exposures
    by_request = shown.position.reshape(-1, CONFIG.n_exposed)
    assert (by_request == np.arange(CONFIG.n_exposed)).all()
    assert (np.diff(shown.request) >= 0).all()
    known = shown.propensity[~np.isnan(shown.propensity)]
    assert len(known) == len(shown)
    assert ((known > 0) & (known <= 1)).all()


def test_position_effect_in_the_log() -> None:
    # Clicks among attractive items fall with the slot; truth stands beside them in candidates.
    data = simulate(CONFIG.model_copy(update={"position_bias": 1.0}), 0)
    flat = simulate(CONFIG.model_copy(update={"position_bias": 0.0}), 0)

    def rate(log: Dataset, first: int, last: int) -> float:
        slot = log.exposures.position
        return float(log.exposures.click[(slot >= first) & (slot <= last)].mean())

    assert rate(data, 8, 9) < 0.5 * rate(flat, 8, 9)
    assert rate(data, 0, 0) == pytest.approx(rate(flat, 0, 0), abs=0.05)


def test_candidates_tell_stage_and_truth() -> None:
    data, rows = dataset(), dataset().candidates
    assert rows.stages == ("recalled", "pre-ranked", "ranked", "exposed")
    expected = world().click_probability(rows.user, rows.item)
    np.testing.assert_allclose(rows.truth, expected, rtol=1e-6)
    key = rows.request << 32 | rows.item
    train = data.exposures.split == TRAIN
    shown = data.exposures.request[train] << 32 | data.exposures.item[train]
    np.testing.assert_array_equal(np.sort(key[rows.stage == 3]), np.sort(shown))
    assert np.isnan(rows.score[rows.stage == 0]).all()
    assert not np.isnan(rows.score[rows.stage > 0]).any()


def test_exposure_bias_is_strong() -> None:
    data, rows = dataset(), dataset().candidates
    truth = [rows.truth[rows.stage == stage].mean() for stage in range(4)]
    assert (np.diff(truth) > 0).all()  # every stage sees better items than the one before
    train = data.exposures.split == TRAIN
    logged = data.exposures.click[train].mean()
    assert logged > 1.3 * rows.truth[rows.stage < 3].mean()
    assert exposure_share(data.exposures.item[train], len(data.items)) > 0.4
    counts = exposure_counts(data)
    recalled = np.bincount(rows.item, minlength=len(data.items))
    assert exposure_share(rows.item, len(data.items)) < 0.35
    assert np.median(counts / np.maximum(recalled, 1)) < 0.1  # most items are seldom let through


def test_default_world_is_biased_as_documented() -> None:
    data = simulate(WorldConfig(), 0)
    train = data.exposures.split == TRAIN
    assert train.sum() == pytest.approx(80_000, rel=0.01)
    assert exposure_share(data.exposures.item[train], len(data.items)) > 0.5


def test_unexposed_pairs_exist_for_labeling() -> None:
    pairs = unexposed_pairs(dataset())
    assert len(pairs) > 10 * (dataset().exposures.split == TRAIN).sum() / 4
    assert not np.isnan(pairs.truth).any()


def history_match(data: Dataset, group: np.ndarray, shown_to: World) -> tuple[float, float]:
    """Click rate of unexposed pool rows whose group stands in the user's history, and does not."""
    rows = data.pools.pool == UNEXPOSED_POOL
    before = data.interactions.time < data.cuts.anchors
    seen = np.zeros((len(data.users), int(group.max()) + 1), dtype=bool)
    seen[data.interactions.user[before], group[data.interactions.item[before]]] = True
    match = seen[data.pools.user[rows], group[data.pools.item[rows]]]
    p = shown_to.click_probability(data.pools.user[rows], data.pools.item[rows])
    return float(p[match].mean()), float(p[~match].mean())


def test_history_content_predicts_clicks_only_with_content_strength() -> None:
    inside, outside = history_match(dataset(), world().subcategory, world())
    assert inside > 1.5 * outside
    bland = WorldConfig.parse({**CONFIG.model_dump(), "content_strength": 0.0, "noise": 0.3})
    data, flat = simulate(bland, 0), build_world(bland, 0)
    # Quality differs between the few items of a subcategory by chance; brand and taxonomy add none.
    inside, outside = history_match(data, flat.subcategory, flat)
    assert inside == pytest.approx(outside, rel=0.25)


def test_an_ab_test_can_go_on_from_the_last_day() -> None:
    _, served, memory = live(world())
    day = CONFIG.n_history_days + CONFIG.n_days + 2
    requests = draw_requests(world(), day, 500, 1_000_000, once=False)

    def oracle(user: np.ndarray, item: np.ndarray) -> np.ndarray:
        return world().utility(np.broadcast_to(user[:, None], item.shape), item)

    control, _ = serve_day(world(), memory, requests, day)
    treated, after = serve_day(world(), memory, requests, day, prerank=oracle)
    clicks = [(arm.click == 1).sum() for arm in (control, treated)]
    assert clicks[1] > 1.1 * clicks[0]
    assert after.popularity.sum() == memory.popularity.sum() + clicks[1]
    assert len(served) == CONFIG.n_days + 2


def test_notes_state_the_bias() -> None:
    text = " ".join(dataset().notes)
    for word in ("simulated", "content_strength", "unexposed", "tenth", "position", "propensity"):
        assert word in text


@settings(max_examples=8)
@given(
    st.integers(1, 30),
    st.integers(80, 130),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.5]),
    st.integers(0, 2**31),
)
def test_any_small_world_is_a_valid_dataset(
    n_users: int, n_items: int, n_days: int, exploration: float, seed: int
) -> None:
    config = WorldConfig(
        n_users=n_users,
        n_items=n_items,
        n_history_days=2,
        n_days=n_days,
        n_eval_requests=4,
        exploration=exploration,
        n_recalled=12,
        n_preranked=6,
        n_ranked=4,
        n_exposed=2,
    )
    data = simulate(config, seed)
    assert np.isnan(data.exposures.propensity).all() == (exploration == 0)
    assert (data.exposures.click >= 0).all()
    assert np.bincount(data.candidates.stage, minlength=4)[3] == (data.exposures.split == 0).sum()


# ---- words ----------------------------------------------------------------------------------


def test_taxonomy_is_complete() -> None:
    assert len(CATEGORIES) == 10
    assert len(set(SUBCATEGORIES)) == 40


def test_titles_can_be_read_and_name_brand_and_kind() -> None:
    subcategory = np.arange(40, dtype=np.int32)
    brand = np.arange(40, dtype=np.int32) % 5
    names = brand_names(5, 0)
    title, text = item_texts(subcategory, brand, names, 0.0, 0)
    coffee = SUBCATEGORIES.index("coffee")
    nouns = ("espresso maker", "coffee grinder", "pour-over set", "milk frother")
    assert any(noun in title[coffee] for noun in nouns)
    assert title[coffee].startswith(names[coffee % 5] + " ")
    assert ", " in title[coffee]
    assert all(full.startswith(short) for short, full in zip(title, text, strict=True))


def test_text_noise_of_one_hides_the_subcategory() -> None:
    many = np.zeros(200, dtype=np.int32)
    _, clear = item_texts(many, many, ("Norvik",), 0.0, 0)
    _, noisy = item_texts(many, many, ("Norvik",), 1.0, 0)
    own = ("two-person", "ultralight", "canvas", "foldable", "trail", "alpine", "rugged")
    assert all(any(word in text for word in own) for text in clear)
    assert not any(any(word in text for word in own) for text in noisy)


def test_brand_names_are_distinct_beyond_the_syllables() -> None:
    names = brand_names(700, 0)
    assert len(set(names)) == 700
