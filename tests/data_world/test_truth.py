"""A shop of known clicks: what is recalled, found, answered."""

import numpy as np
import pytest

from prerank.data.simulate_config import TruthConfig
from prerank.data.truth import Truth, build_truth
from prerank.data.world_cascade import blank_memory, draw_requests, remember
from prerank.data.world_config import WorldConfig
from prerank.data.world_model import DAY_MS, START_MS
from prerank.errors import DataError

FUNNEL = {"n_recalled": 4, "n_preranked": 3, "n_ranked": 2, "n_exposed": 1}
USER = np.repeat(np.arange(3, dtype=np.int32), 6)[::-1].copy()  # users 0..2, six items each
ITEM = np.tile(np.arange(0, 12, 2, dtype=np.int32), 3)  # even items of twelve
CLICK = (ITEM % 4 == 0).astype(np.int8)


def truth(**settings: float) -> Truth:
    return build_truth(
        WorldConfig.parse({**FUNNEL, "recall_popular": 0.5}),
        TruthConfig.parse({"n_history_days": 5, "new_item_share": 0.0, **settings}),
        4,  # user 3 has no known pair
        12,
        USER,
        ITEM,
        CLICK,
        n_days=10,
        seed=1,
    )


def test_clicks_are_looked_up() -> None:
    shop = truth()
    pairs = np.array([0, 0, 1, 3], np.int32), np.array([0, 2, 1, 0], np.int32)
    assert shop.click_probability(*pairs).tolist() == [1, 0, 0, 0]
    assert shop.utility(*pairs).tolist() == [4, 0, 0, 0]


def test_recall_is_distinct_known_and_new_to_the_user() -> None:
    shop = truth()
    requests = draw_requests(shop, 0, 60, 0, once=False)
    assert not (requests.user == 3).any()
    memory = remember(blank_memory(shop), np.array([0, 0], np.int32), np.array([0, 4], np.int32))
    items = shop.recall(memory, requests, 0)
    assert items.shape == (60, 4)
    assert (items % 2 == 0).all()
    assert all(len(set(row)) == 4 for row in items.tolist())
    mine = items[requests.user == 0]
    assert len(mine) and not np.isin(mine, (0, 4)).any()
    # All of the four others are recalled, and never the padding: four fit.
    assert set(np.unique(mine)) == {2, 6, 8, 10}


def test_too_few_items_are_padded_at_the_end() -> None:
    shop = truth()
    taken = np.array([0, 2, 4], np.int32)
    memory = remember(blank_memory(shop), np.zeros(3, np.int32), taken)
    requests = draw_requests(shop, 0, 60, 0, once=False)
    mine = shop.recall(memory, requests, 0)[requests.user == 0]
    assert (mine[:, 3] == -1).all() and (mine[:, :3] >= 0).all()


def test_popular_items_are_recalled_more_often() -> None:
    shop = truth()
    many = np.full(200, 2, np.int32)
    memory = remember(blank_memory(shop), np.full(200, 3, np.int32), many)
    requests = draw_requests(shop, 0, 600, 0, once=False)
    counts = np.bincount(shop.recall(memory, requests, 0).ravel(), minlength=12)
    assert counts[2] > 590 > 480 > counts[[0, 4, 6, 8, 10]].max()


def test_organic_discovery_reaches_its_share() -> None:
    shop = build_truth(
        WorldConfig.parse(FUNNEL),
        TruthConfig.parse({"n_history_days": 10, "history_share": 0.4, "new_item_share": 0.0}),
        200,
        50,
        np.repeat(np.arange(200, dtype=np.int32), 50),
        np.tile(np.arange(50, dtype=np.int32), 200),
        np.tile((np.arange(50) % 2).astype(np.int8), 200),
        n_days=12,
        seed=0,
    )
    memory, found = blank_memory(shop), 0
    for day in range(10):
        positives = shop.organic_day(memory, day)
        assert (positives.time // DAY_MS == START_MS // DAY_MS + day).all()
        assert (positives.item % 2 == 1).all()  # clicks only
        memory = remember(memory, positives.user, positives.item)
        found += len(positives)
    assert len(np.unique(memory.known)) == found  # nothing twice
    assert found / (200 * 25) == pytest.approx(0.4, abs=0.03)


def test_new_items_come_later() -> None:
    shop = truth(new_item_share=0.5)
    assert (shop.release >= START_MS).all() and (shop.release > START_MS).any()
    unborn = np.flatnonzero(shop.release > START_MS)
    items = shop.recall(blank_memory(shop), draw_requests(shop, 0, 60, 0, once=False), 0)
    assert not np.isin(items, unborn).any()


@pytest.mark.parametrize(
    ("user", "item", "click", "message"),
    [
        ([], [], [], "no pair"),
        ([0, 0], [1, 1], [0, 1], "twice"),
        ([0], [1], [2], "out of range"),
    ],
)
def test_a_bad_truth_is_refused(
    user: list[int], item: list[int], click: list[int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        build_truth(
            WorldConfig.parse(FUNNEL),
            TruthConfig(),
            2,
            2,
            np.array(user, np.int32),
            np.array(item, np.int32),
            np.array(click, np.int8),
            n_days=3,
            seed=0,
        )
