"""What a cell of the table says."""

import io
from pathlib import Path

from rich.console import Console

from prerank.evaluation.plots_ab import day_plot, lift_plot
from prerank.simulation.measures import METRICS
from prerank.simulation.page import cells, pair_cells, write_page
from prerank.simulation.show import BLOCKS, SHOWN, cell, print_result


def estimate(value: float | None, half: float | None = None) -> dict[str, float | None]:
    if value is None or half is None:
        return {"value": value, "low": None, "high": None, "n": 1}
    return {"value": value, "low": value - half, "high": value + half, "n": 5}


def line(arm: str, metric: str, level: float, lift: dict | None) -> dict:
    return {"arm": arm, "metric": metric, "level": estimate(level, 0.01), "lift": lift}


RESULT = {
    "name": "toy",
    "arms": ["base", "arm", "oracle"],
    "references": ["oracle"],
    "baseline": "base",
    "n_days": 2,
    "n_replications": 5,
    "interval": 0.95,
    "metrics": METRICS,
    "before": [estimate(0.1, 0.01)],
    "by_day": {arm: [estimate(0.2, 0.01), estimate(0.3)] for arm in ("base", "arm", "oracle")},
    "lines": [
        line(arm, metric, 0.25, lift)
        for arm, lift in (
            ("base", None),
            ("arm", estimate(3.07, 0.5)),
            ("oracle", estimate(40.0, 50.0)),
        )
        for metric in METRICS
    ],
}


def test_cells() -> None:
    assert cell(line("base", "ctr", 0.123456, None)) == "0.1235"
    assert cell(line("arm", "ctr", 0.2, estimate(3.07, 0.5))) == "+3.1 ±0.5*"
    assert cell(line("arm", "ctr", 0.2, estimate(-3.07, 3.5))) == "-3.1 ±3.5\N{NO-BREAK SPACE}"
    assert cell(line("arm", "ctr", 0.2, estimate(1.0))) == "+1.0"
    assert cell(line("arm", "ctr", 0.2, estimate(None))) == "n/a"


def test_pairs_are_shown_where_there_are_more_than_two_arms(tmp_path: Path) -> None:
    one = estimate(1.0, 0.5)
    two = {"base": {"arm": one}, "arm": {"base": one}}
    three = {"a": {"b": one, "c": one}, "b": {"a": one, "c": one}, "c": {"a": one, "b": one}}
    assert pair_cells(RESULT) == {} and pair_cells({**RESULT, "against": two}) == {}
    assert pair_cells({**RESULT, "against": three})["b"] == ["+1.0 ±0.5*", "", "+1.0 ±0.5*"]
    page = {**RESULT, "notes": [], "versions": {}, "recipe": ""}
    write_page({**page, "against": three}, tmp_path / "with.html")
    write_page(page, tmp_path / "without.html")
    assert "lift of each arm over each other" in (tmp_path / "with.html").read_text()
    assert "lift of each arm over each other" not in (tmp_path / "without.html").read_text()


def test_every_metric_stands_in_one_block() -> None:
    assert [m for block in BLOCKS for m in block] == list(SHOWN)
    assert set(METRICS) - set(SHOWN) == {"expected_ctr"}


def test_the_terminal_table_fits() -> None:
    out = io.StringIO()
    print_result(RESULT, Console(file=out, width=100))
    assert max(len(row) for row in out.getvalue().splitlines()) <= 100
    assert "+3.1 ±0.5*" in out.getvalue()


def test_a_result_from_before_a_metric_is_shown_without_it() -> None:
    old = {name: text for name, text in METRICS.items() if name != "categories_clicked"}
    lines = [one for one in RESULT["lines"] if one["metric"] in old]
    out = io.StringIO()
    print_result({**RESULT, "metrics": old, "lines": lines}, Console(file=out, width=100))
    assert "categories clicked" not in out.getvalue()
    assert "coverage" in out.getvalue()
    assert [len(row) for row in cells({**RESULT, "metrics": old, "lines": lines}).values()] == [
        len(SHOWN) - 1
    ] * 3


def test_marks_tell_arms_of_one_colour_apart() -> None:
    arms = [f"arm {k}" for k in range(14)]
    days = [estimate(0.2, 0.01), estimate(0.3)]
    figure = day_plot({**RESULT, "arms": arms, "by_day": dict.fromkeys(arms, days)})
    seen = [(one.line.color, one.marker.symbol) for one in figure.data if one.name in arms]
    assert len(seen) == len(set(seen)) == 14


def test_of_many_arms_the_best_and_the_baseline_are_drawn_at_first() -> None:
    arms = ["base", *[f"arm {k}" for k in range(14)], "oracle"]
    days = [estimate(0.2, 0.01), estimate(0.3)]
    lines = [line(arm, "ctr", 0.2, estimate(float(k))) for k, arm in enumerate(arms[1:])]
    many = {**RESULT, "arms": arms, "by_day": dict.fromkeys(arms, days), "lines": lines}
    figure = day_plot(many)
    drawn = [one.name for one in figure.data if one.visible != "legendonly"]
    assert drawn == ["before", "base", *[f"arm {k}" for k in range(4, 14)], "oracle"]
    assert (
        len({(one.line.color, one.marker.symbol) for one in figure.data if one.name in arms}) == 16
    )
    assert "a click on a name" in figure.layout.legend.title.text
    assert all(one.visible for one in day_plot(RESULT).data[1:])


def test_a_lift_whose_interval_ends_at_zero_keeps_its_whisker() -> None:
    lines = [line("arm", "ctr", 0.25, estimate(-1.5, 1.5))]
    assert list(lift_plot({**RESULT, "lines": lines}, "ctr").data[0].error_x.array) == [1.5]


def test_plots_hold_every_arm() -> None:
    assert [trace.name for trace in day_plot(RESULT).data] == ["before", "base", "arm", "oracle"]
    assert list(day_plot(RESULT).data[0].x) == [0]  # the last day of production is day 0
    arm, reference = lift_plot(RESULT, "ctr").data
    assert list(arm.y) == ["arm"] and list(reference.y) == ["oracle"]
    assert arm.error_x.array[0] == 0.5
