"""Lifts and intervals by hand."""

import numpy as np
import pytest

from prerank.simulation.summary import against, by_day, estimate, table, values_of


def day(clicks: float, exposures: float = 100.0) -> dict[str, float]:
    names = ("visits", "pages", "users", "expected_clicks", "tail_exposures", "tail_clicks")
    more = ("new_exposures", "categories", "categories_clicked")
    rest = dict.fromkeys((*names, *more, "page_diversity", "pages_of_several"), 1.0)
    return {**rest, "clicks": clicks, "exposures": exposures}


WHOLE = {"released": 4.0, "shown": 2.0, "new": 0.0, "new_discovered": 0.0}


def test_estimate_is_student() -> None:
    got = estimate(np.array([1.0, 2.0, 3.0]), 0.95)
    # sd 1, error 1 / sqrt 3, t quantile 4.302653 with two degrees of freedom
    assert got.value == 2.0
    assert got.low == pytest.approx(2 - 4.302653 / 3**0.5)
    assert got.high == pytest.approx(2 + 4.302653 / 3**0.5)
    assert got.n == 3


def test_estimate_leaves_the_undefined_out() -> None:
    assert estimate(np.array([np.nan, 5.0]), 0.95).value == 5.0
    assert estimate(np.array([np.nan, 5.0]), 0.95).low is None
    assert estimate(np.array([np.nan]), 0.95).value is None


def test_lift_is_paired_inside_a_replication() -> None:
    days = {
        "base": [[day(10), day(10)], [day(40), day(40)]],
        "arm": [[day(11), day(11)], [day(44), day(44)]],
    }
    whole = {"base": [WHOLE, WHOLE], "arm": [WHOLE, WHOLE]}
    lines = {(line.arm, line.metric): line for line in table(values_of(days, whole), "base", 0.95)}
    lift = lines["arm", "ctr"].lift
    assert lift is not None and lift.value == pytest.approx(10)
    # Levels differ fourfold between replications, lifts do not: the interval is a point.
    assert lift.low == pytest.approx(10) and lift.high == pytest.approx(10)
    assert lines["base", "ctr"].lift is None
    assert lines["arm", "ctr"].level.value == pytest.approx(0.275)
    assert lines["arm", "new_discovered"].level.value is None  # no new item at all


def test_arms_are_compared_inside_a_replication() -> None:
    days = {
        "base": [[day(10), day(10)], [day(40), day(40)]],
        "one": [[day(12), day(12)], [day(44), day(44)]],
        "two": [[day(15), day(15)], [day(55), day(55)]],
        "oracle": [[day(90), day(90)], [day(90), day(90)]],
    }
    values = values_of(days, {arm: [WHOLE, WHOLE] for arm in days})
    found = against(values, ["base", "one", "two"], 0.95)
    assert {arm: set(row) for arm, row in found.items()} == {
        "base": {"one", "two"},
        "one": {"base", "two"},
        "two": {"base", "one"},
    }
    assert found["two"]["one"].value == pytest.approx(25)
    assert found["two"]["one"].low == pytest.approx(25)
    assert found["one"]["two"].value == pytest.approx(-20)
    assert found["one"]["base"].value == pytest.approx(15)  # 20 % and 10 %


def test_by_day_is_a_mean_over_replications() -> None:
    got = by_day([[day(10), day(20)], [day(30), day(40)]], 0.95)
    assert [one.value for one in got] == pytest.approx([0.2, 0.3])
