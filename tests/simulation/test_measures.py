"""Counts and rates of a day that one can check by hand."""

import numpy as np
import pytest

from prerank.data.world_cascade import EXPOSED, PAGE_ID, RECALLED, Traffic
from prerank.simulation.measures import METRICS, Yardstick, count, final_counts, item_counts, rates

ROOT_HALF = 0.5**0.5


@pytest.fixture
def traffic() -> Traffic:
    """User 0 sees items 0, 1 on one page and item 2 on the next; user 1 sees items 1, 3."""
    return Traffic(
        request=np.array([7, 7, 7, 7 + PAGE_ID, 8, 8]),
        user=np.array([0, 0, 0, 0, 1, 1], np.int32),
        item=np.array([0, 1, 3, 2, 1, 3], np.int32),
        time=np.zeros(6, np.int64),
        stage=np.array([EXPOSED, EXPOSED, RECALLED, EXPOSED, EXPOSED, EXPOSED], np.int8),
        score=np.zeros(6, np.float32),
        position=np.array([0, 1, -1, 0, 0, 1], np.int32),
        propensity=np.full(6, np.nan, np.float32),
        truth=np.array([0.5, 0.25, 1.0, 0.125, 0.5, 0.5], np.float32),
        attractive=np.array([1, 0, 1, 0, 1, 1], np.int8),
        click=np.array([1, 0, -1, 0, 1, 1], np.int8),
    )


@pytest.fixture
def yardstick() -> Yardstick:
    return Yardstick(
        vectors=np.array([[1, 0], [0, 1], [1, 0], [ROOT_HALF, ROOT_HALF], [0, 1]], np.float32),
        category=np.array([0, 1, 1, 2, 0]),
        tail=np.array([False, False, True, True, True]),
        release=np.array([0, 0, 0, 50, 60], np.int64),
        start=40,
        position_bias=1.0,  # slot 1 is looked at half of the time
    )


def test_counts_by_hand(traffic: Traffic, yardstick: Yardstick) -> None:
    got = count(traffic, yardstick)
    assert got == {
        "visits": 2,
        "pages": 3,
        "users": 2,
        "exposures": 5,
        "clicks": 3,
        "expected_clicks": 0.5 + 0.125 + 0.125 + 0.5 + 0.25,
        "tail_exposures": 2,  # items 2 and 3
        "tail_clicks": 1,
        "new_exposures": 1,  # item 3
        "categories": 2 + 2,  # user 0: categories 0 and 1; user 1: 1 and 2
        "categories_clicked": 1 + 2,  # user 0: category 0; user 1: 1 and 2
        # pages: orthogonal items 1 - 0, a single item nothing, 45 degrees 1 - cos
        "page_diversity": pytest.approx(1 + 1 - ROOT_HALF),
        "pages_of_several": 2,
    }


def test_rates_are_ratios_of_sums(traffic: Traffic, yardstick: Yardstick) -> None:
    day = count(traffic, yardstick)
    shown, clicks = item_counts(traffic, 5)
    assert shown.tolist() == [1, 2, 1, 1, 0]
    assert clicks.tolist() == [1, 1, 0, 1, 0]
    whole = final_counts(shown, clicks, yardstick, end=100)
    assert whole == {"released": 5, "shown": 4, "new": 2, "new_discovered": 1}
    got = rates([day, {**day, "clicks": 1.0}], whole)
    assert list(got) == list(METRICS)
    assert got["ctr"] == pytest.approx(4 / 10)
    assert got["page_views"] == pytest.approx(6 / 4)
    assert got["clicks_per_visit"] == pytest.approx(4 / 4)
    assert got["categories"] == pytest.approx(8 / 4)
    assert got["categories_clicked"] == pytest.approx(6 / 4)
    assert got["tail_clicks"] == pytest.approx(2 / 4)
    assert got["new_exposures"] == pytest.approx(1 / 5)
    assert got["new_discovered"] == pytest.approx(1 / 2)
    assert got["coverage"] == pytest.approx(4 / 5)


def test_items_released_after_the_end_do_not_count(yardstick: Yardstick) -> None:
    nothing = np.zeros(5, np.int64)
    assert final_counts(nothing, nothing, yardstick, end=55) == {
        "released": 4,
        "shown": 0,
        "new": 1,
        "new_discovered": 0,
    }
