"""The page of a simulated A/B test: one self-contained HTML file, readable without scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from prerank.evaluation.plots import BLUE, GREEN, GREY, GRID, LINES, ORANGE
from prerank.simulation.show import SHOWN, cell

TEMPLATE = "simulation.html.jinja"
ROW_HEIGHT = 26


def write_page(result: Mapping[str, Any], path: Path) -> None:
    """Write the page of ``result``, what ``simulation.json`` holds."""
    text = (files("prerank.simulation") / TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    lines = {(line["arm"], line["metric"]): line for line in result["lines"]}
    figures = [
        ("Click rate by day", day_plot(result)),
        ("CTR lift over " + result["baseline"], lift_plot(result, "ctr")),
        ("Lift of the long tail's share of clicks", lift_plot(result, "tail_clicks")),
    ]
    joined = f"[{','.join(figure.to_json() for _, figure in figures)}]"
    path.write_text(
        environment.from_string(text).render(
            result=result,
            shown=SHOWN,
            cells={arm: [cell(lines[arm, m]) for m in SHOWN] for arm in result["arms"]},
            titles=[(title, figure.layout.height) for title, figure in figures],
            figures=Markup(joined.replace("<", "\\u003c").replace(">", "\\u003e")),
            plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
        ),
        encoding="utf-8",
    )


def day_plot(result: Mapping[str, Any]) -> go.Figure:
    """Click rate by day, one line an arm; the days before 1 are production's, shared by all."""
    figure = go.Figure()
    before = result["before"]
    first = 1 - len(before)
    _line(figure, "before", [*range(first, 1)], before, GREY, "dot")
    colours = [LINES[i % len(LINES)] for i in range(len(result["arms"]))]
    for arm, colour in zip(result["arms"], colours, strict=True):
        dash = "dash" if arm in result["references"] else "solid"
        days = [*range(1, len(result["by_day"][arm]) + 1)]
        _line(figure, arm, days, result["by_day"][arm], colour, dash)
    figure.update_xaxes(title="day", dtick=1)
    figure.update_yaxes(title="click rate")
    return _styled(figure, 460)


def _line(
    figure: go.Figure,
    name: str,
    days: Sequence[int],
    found: Sequence[Mapping[str, Any]],
    colour: str,
    dash: str,
) -> None:
    half = [0.0 if e["low"] is None else (e["high"] - e["low"]) / 2 for e in found]
    figure.add_scatter(
        x=list(days),
        y=[e["value"] for e in found],
        customdata=half,
        mode="lines+markers",
        name=escape(name),
        line={"color": colour, "dash": dash, "width": 1.8},
        marker={"size": 5},
        hovertemplate=escape(name) + ", day %{x}: %{y:.4f} ± %{customdata:.4f}<extra></extra>",
    )


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
                "array": [(lift["high"] or lift["value"]) - lift["value"] for _, lift in mine],
                "color": colour,
                "thickness": 1.6,
                "width": 4,
            },
            hovertemplate="%{y}: %{x:+.2f} %<extra></extra>",
        )
    figure.add_vline(x=0, line={"color": ORANGE, "width": 1, "dash": "dot"})
    order = [escape(arm) for arm, _ in rows]
    figure.update_yaxes(categoryorder="array", categoryarray=order, automargin=True)
    figure.update_xaxes(title=f"lift over {escape(result['baseline'])}, %")
    return _styled(figure, 110 + ROW_HEIGHT * len(rows))


def _styled(figure: go.Figure, height: int) -> go.Figure:
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 56, "r": 12, "t": 12, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12, "color": GREY},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 11}},
        showlegend=True,
    )
    figure.update_xaxes(automargin=True, gridcolor=GRID, zeroline=False)
    figure.update_yaxes(gridcolor=GRID, zeroline=False)
    return figure
