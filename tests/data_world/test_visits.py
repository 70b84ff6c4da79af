"""Visits of several pages: who goes on, what is not shown twice, one page changes nothing."""

import numpy as np
import pytest

from prerank.data.world_cascade import (
    EXPOSED,
    PAGE_ID,
    Memory,
    Requests,
    Traffic,
    blank_memory,
    draw_requests,
    recall,
    serve,
    serve_visits,
)
from prerank.data.world_config import WorldConfig
from prerank.data.world_model import DAY_MS, World, build_world

SIZES = {"n_users": 60, "n_items": 200, "n_brands": 20}
FUNNEL = {"n_recalled": 20, "n_preranked": 8, "n_ranked": 5, "n_exposed": 3}


def visits(n: int = 3000, **settings: float) -> tuple[World, Requests, Traffic]:
    world = build_world(WorldConfig.parse({**SIZES, **FUNNEL, **settings}), 0)
    requests = draw_requests(world, 0, n, 100, once=False)

    def find(memory: Memory, some: Requests, day: int) -> np.ndarray:
        return recall(world, memory, some, day)

    return world, requests, serve_visits(world, find, blank_memory(world), requests, 0)


def test_one_page_is_serve() -> None:
    world, requests, traffic = visits(50)
    plain = serve(world, blank_memory(world), requests, 0)
    for name, values in plain.columns().items():
        np.testing.assert_array_equal(values, getattr(traffic, name))


def test_users_go_on_as_their_clicks_say() -> None:
    rates = {"next_page_rate": 0.2, "next_page_per_click": 0.3, "base_click_rate": 0.05}
    _, requests, traffic = visits(max_pages=2, **rates)
    first = traffic.request < PAGE_ID
    clicks = np.bincount(
        traffic.request[first & (traffic.click == 1)] - 100, minlength=len(requests)
    )
    went_on = np.isin(requests.request + PAGE_ID, traffic.request)
    for c in range(2):
        share = went_on[clicks == c].mean()
        assert share == pytest.approx(min(1, 0.2 + 0.3 * c), abs=0.05)


def test_at_most_max_pages_inside_the_day() -> None:
    _, _, traffic = visits(max_pages=3, next_page_rate=1.0)
    assert np.unique(traffic.request // PAGE_ID).tolist() == [0, 1, 2]
    assert len(np.unique(np.unique(traffic.time) // DAY_MS)) == 1


def test_a_later_page_shows_nothing_again() -> None:
    _, _, traffic = visits(200, max_pages=3, next_page_rate=1.0)
    shown = traffic.stage == EXPOSED
    visit, item = traffic.request[shown] % PAGE_ID, traffic.item[shown]
    pairs = visit << 32 | item
    assert len(np.unique(pairs)) == len(pairs)
    pages = np.bincount(visit - 100)
    assert pages.max() == 9  # three pages of three items
