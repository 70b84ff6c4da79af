"""Plots of a simulated A/B test: plain data in, Plotly figures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from prerank.evaluation.plots import (
    BLUE,
    GREEN,
    GREY,
    LINES,
    ORANGE,
    cycle,
    name_rows,
    rows_height,
    styled,
)

MOST_LINES = 12
"""Arms whose lines are shown at first; more of them cannot be told apart."""
MARKS = ("circle", "square", "diamond", "x")


def day_plot(result: Mapping[str, Any]) -> go.Figure:
    """Click rate by day, one line an arm; the days before 1 are production's, shared by all.

    Of many arms the baseline, the references and those with most clicks are shown at first.
    """
    figure = go.Figure()
    before, arms = result["before"], result["arms"]
    first = 1 - len(before)
    _line(figure, "before", [*range(first, 1)], before, GREY, "dot")
    shown = _shown_first(result)
    styles = [*(arm for arm in arms if arm in shown), *(arm for arm in arms if arm not in shown)]
    colours = cycle(len(arms))
    for arm in arms:
        place = styles.index(arm)
        dash = "dash" if arm in result["references"] else "solid"
        days = [*range(1, len(result["by_day"][arm]) + 1)]
        # Colours come again after some arms: marks tell those of one colour apart.
        mark = MARKS[place // len(LINES) % len(MARKS)]
        _line(figure, arm, days, result["by_day"][arm], colours[place], dash, mark)
        figure.data[-1].visible = True if arm in shown else "legendonly"
    figure.update_xaxes(title="day", dtick=1)
    figure.update_yaxes(title="click rate")
    if len(shown) < len(arms):
        said = "a click on a name shows or hides its line"
        figure.update_layout(legend_title={"text": said, "side": "top"})
    return styled(figure, 460 if len(shown) == len(arms) else 560)


def _shown_first(result: Mapping[str, Any]) -> set[str]:
    """Return the arms whose lines are drawn when the page opens."""
    arms, fixed = result["arms"], {result["baseline"], *result["references"]}
    if len(arms) <= MOST_LINES:
        return set(arms)
    lift = {line["arm"]: line["lift"] for line in result["lines"] if line["metric"] == "ctr"}
    rest = [arm for arm in arms if arm not in fixed and lift.get(arm)]
    rest.sort(key=lambda arm: -(lift[arm]["value"] or 0.0))
    return fixed | set(rest[: max(1, MOST_LINES - len(fixed))])


def _line(
    figure: go.Figure,
    name: str,
    days: Sequence[int],
    found: Sequence[Mapping[str, Any]],
    colour: str,
    dash: str,
    mark: str = "circle",
) -> None:
    figure.add_scatter(
        x=list(days),
        y=[e["value"] for e in found],
        customdata=[_half(estimate) for estimate in found],
        mode="lines+markers",
        name=escape(name),
        line={"color": colour, "dash": dash, "width": 1.8},
        marker={"size": 6, "symbol": mark},
        hovertemplate=escape(name) + ", day %{x}: %{y:.4f} ± %{customdata:.4f}<extra></extra>",
    )


def _half(estimate: Mapping[str, Any]) -> float:
    """Return half of an estimate's interval, 0 without one."""
    return 0.0 if estimate["low"] is None else (estimate["high"] - estimate["low"]) / 2


def lift_plot(result: Mapping[str, Any], metric: str) -> go.Figure:
    """Lift over the baseline in percent, dots with whiskers, best on top."""
    rows = [
        (line["arm"], line["lift"])
        for line in result["lines"]
        if line["metric"] == metric and line["lift"] and line["lift"]["value"] is not None
    ]
    rows.sort(key=lambda row: row[1]["value"])
    figure = go.Figure()
    for references, name, colour in ((False, "arm", BLUE), (True, "reference", GREEN)):
        mine = [row for row in rows if (row[0] in result["references"]) == references]
        if not mine:
            continue
        figure.add_scatter(
            x=[lift["value"] for _, lift in mine],
            y=[escape(arm) for arm, _ in mine],
            mode="markers",
            name=name,
            marker={"size": 9, "color": colour},
            error_x={
                "array": [_half(lift) for _, lift in mine],
                "color": colour,
                "thickness": 1.6,
                "width": 4,
            },
            hovertemplate="%{y}: %{x:+.2f} %<extra></extra>",
        )
    figure.add_vline(x=0, line={"color": ORANGE, "width": 1, "dash": "dot"})
    order = [escape(arm) for arm, _ in rows]
    name_rows(figure, order)
    figure.update_xaxes(title=f"lift over {escape(result['baseline'])}, %")
    return styled(figure, rows_height(len(rows)))
