"""The one source of plots: plain data in, Plotly figures out.

Backgrounds are clear and the page sets the colour of text and grid, so that a figure is read in
light and in dark. Colours are those of Okabe and Ito, told apart by colour-blind readers too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape, unescape
from typing import Any

import plotly.graph_objects as go

from prerank.artifacts import Record
from prerank.evaluation.extra import Bin, CatalogMap, Decile, FunnelStep, Histogram
from prerank.evaluation.view import Role

BLUE, ORANGE, GREEN, PURPLE, SKY, GREY = (
    "#0b84d8",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#8a8f98",
)
ROLE_COLOR: Mapping[Role, str] = {
    "method": BLUE,
    "control": SKY,
    "baseline": ORANGE,
    "other": GREY,
    "ceiling": GREEN,
    "variant": GREY,
    "label": PURPLE,
}
ROLE_NAME: Mapping[Role, str] = {
    "method": "method",
    "control": "control",
    "baseline": "baseline",
    "other": "other method",
    "ceiling": "ceiling",
    "variant": "variant",
    "label": "label score",
}
GRID = "rgba(138,143,152,.25)"
LINES = (BLUE, ORANGE, GREEN, PURPLE, SKY, GREY)
ROW_HEIGHT = 26, 13
"""Of a row of dots or bars, at most and at least: up to forty rows stay on one printed page."""
ROWS_HEIGHT = 520
MOST_LETTERS = 26
"""Of a row's name beside it."""


@dataclass(frozen=True)
class Plot:
    """One figure of a page."""

    title: str
    figure: go.Figure

    @cached_property
    def json(self) -> str:
        """The figure as JSON, made once."""
        text: str = self.figure.to_json()
        return text


def metric_plot(rows: Sequence[tuple[Record, Role]], metric: str, baseline: str) -> go.Figure:
    """Dots with whiskers, one row a method, best on top; a line marks the baseline.

    Args:
        rows: a record and the method's role each; records without a value are left out.
        metric: title of the axis.
        baseline: method whose value is marked, empty for none.
    """
    known = [(record, role) for record, role in rows if record.value is not None]
    known.sort(key=lambda row: row[0].value or 0.0)
    figure = go.Figure()
    for role in (role for role in ROLE_NAME if any(of == role for _, of in known)):
        mine = [record for record, of in known if of == role]
        values = [record.value or 0.0 for record in mine]
        ends = [record.interval or (at, at) for record, at in zip(mine, values, strict=True)]
        figure.add_scatter(
            x=values,
            y=[escape(record.method) for record in mine],
            mode="markers",
            name=ROLE_NAME[role],
            marker={"size": 9, "color": ROLE_COLOR[role]},
            error_x={
                "array": [high - at for (_, high), at in zip(ends, values, strict=True)],
                "arrayminus": [at - low for (low, _), at in zip(ends, values, strict=True)],
                "color": ROLE_COLOR[role],
                "thickness": 1.6,
                "width": 4,
            },
            hovertemplate="%{y}: %{x:.4f}<extra></extra>",
        )
    reference = next((r.value for r, _ in known if r.method == baseline), None)
    if reference is not None:
        figure.add_vline(x=reference, line={"color": ORANGE, "width": 1, "dash": "dot"})
    order = [escape(record.method) for record, _ in known]
    name_rows(figure, order)
    figure.update_xaxes(title=escape(metric))
    return styled(figure, height=rows_height(len(order)))


def share_plot(shares: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """Stacked bars: the share of head, mid and tail items in each row.

    Args:
        shares: row (candidates, clicks, a method) -> segment -> share; first row on top.
    """
    figure = go.Figure()
    names = list(shares)[::-1]
    for segment, color in (("head", ORANGE), ("mid", SKY), ("tail", GREEN)):
        figure.add_bar(
            x=[shares[name].get(segment, 0.0) for name in names],
            y=[escape(name) for name in names],
            orientation="h",
            name=segment,
            marker={"color": color},
            hovertemplate="%{y}, " + segment + ": %{x:.1%}<extra></extra>",
        )
    figure.update_layout(barmode="stack", bargap=0.25, legend={"traceorder": "normal"})
    figure.update_xaxes(range=[0, 1], tickformat=".0%", title="share")
    name_rows(figure, [escape(name) for name in names])
    return styled(figure, height=rows_height(len(names)))


def reliability_plot(curves: Mapping[str, Sequence[Bin]], x_title: str) -> go.Figure:
    """Click rate against what was predicted, one line a method; the diagonal is perfect.

    Args:
        curves: name -> bins, by rising prediction.
        x_title: what was predicted.
    """
    figure = go.Figure()
    values = [bin_[key] for bins in curves.values() for bin_ in bins for key in ("predicted",)]
    values += [bin_["clicked"] for bins in curves.values() for bin_ in bins]
    top = min(1.0, 1.05 * max(values, default=1.0))
    figure.add_scatter(
        x=[0, top],
        y=[0, top],
        mode="lines",
        name="perfect",
        line={"color": GREY, "dash": "dot", "width": 1},
        hoverinfo="skip",
    )
    for (name, bins), color in zip(curves.items(), cycle(len(curves)), strict=True):
        figure.add_scatter(
            x=[bin_["predicted"] for bin_ in bins],
            y=[bin_["clicked"] for bin_ in bins],
            mode="lines+markers",
            name=escape(name),
            line={"color": color, "width": 1.6},
            marker={"size": 6},
            hovertemplate="predicted %{x:.3f}, clicked %{y:.3f}<extra></extra>",
        )
    figure.update_xaxes(title=x_title, rangemode="tozero")
    figure.update_yaxes(title="click rate", rangemode="tozero")
    return styled(figure, height=360)


def histogram_plot(histograms: Mapping[str, Histogram], x_title: str) -> go.Figure:
    """Share of values between edges, one stepped line a name.

    Args:
        histograms: name -> counts between edges.
        x_title: what is counted.
    """
    figure = go.Figure()
    for (name, one), color in zip(histograms.items(), cycle(len(histograms)), strict=True):
        total = max(1, sum(one["counts"]))
        shares = [count / total for count in one["counts"]]
        figure.add_scatter(
            x=one["edges"],
            y=[*shares, shares[-1] if shares else 0.0],
            mode="lines",
            name=escape(name),
            line={"shape": "hv", "color": color, "width": 1.8},
            hovertemplate="from %{x:.2f}: %{y:.1%}<extra></extra>",
        )
    figure.update_xaxes(title=x_title)
    figure.update_yaxes(title="share", tickformat=".0%", rangemode="tozero")
    return styled(figure, height=340)


def map_plot(knots: Mapping[str, Sequence[Sequence[float]]]) -> go.Figure:
    """The fitted map from relevance to pseudo-label, one line a name."""
    figure = go.Figure()
    for (name, points), color in zip(knots.items(), cycle(len(knots)), strict=True):
        figure.add_scatter(
            x=[point[0] for point in points],
            y=[point[1] for point in points],
            mode="lines",
            name=escape(name),
            line={"color": color, "width": 1.8},
        )
    figure.update_xaxes(title="relevance (max-pooled cosine)")
    figure.update_yaxes(title="pseudo-label", rangemode="tozero")
    return styled(figure, height=340)


def parts_plot(
    curves: Mapping[str, Sequence[float | None]], x_title: str, y_title: str
) -> go.Figure:
    """One value a part (a tenth, a fifth) of something ordered, one line a name.

    Args:
        curves: name -> values by rising part; None leaves a gap.
        x_title: what the parts are.
        y_title: what the values are.
    """
    figure = go.Figure()
    for (name, values), color in zip(curves.items(), cycle(len(curves)), strict=True):
        figure.add_scatter(
            x=list(range(1, len(values) + 1)),
            y=list(values),
            mode="lines+markers",
            name=escape(name),
            line={"color": color, "width": 1.8},
            hovertemplate="part %{x}: %{y:.3f}<extra></extra>",
        )
    figure.update_xaxes(title=x_title, dtick=1)
    figure.update_yaxes(title=y_title)
    return styled(figure, height=340)


def codebook_plot(quality: Mapping[str, Any]) -> go.Figure:
    """Codes there are, codes used and perplexity, by level.

    Args:
        quality: the quality report of the SemanticIds artifact.
    """
    levels = [f"level {i + 1}" for i in range(len(quality["codebook_sizes"]))]
    figure = go.Figure()
    for name, key, color in (
        ("codebook size", "codebook_sizes", GREY),
        ("codes used", "codes_used", BLUE),
        ("perplexity", "perplexity", GREEN),
    ):
        figure.add_bar(
            x=levels,
            y=quality[key],
            name=name,
            marker={"color": color},
            hovertemplate="%{x}, " + name + ": %{y:.0f}<extra></extra>",
        )
    figure.update_layout(barmode="group")
    figure.update_yaxes(title="codes")
    return styled(figure, height=320)


def funnel_plot(steps: Sequence[FunnelStep]) -> go.Figure:
    """Bars of what is left after each step of the cascade, the first step on top.

    Args:
        steps: from recalled to clicked.
    """
    figure = go.Figure()
    names = [escape(step["step"]) for step in steps][::-1]
    rows = [step["rows"] for step in steps][::-1]
    figure.add_bar(
        x=rows,
        y=names,
        orientation="h",
        text=[f"{n:,}" for n in rows],
        textposition="auto",
        marker={"color": BLUE},
        hovertemplate="%{y}: %{x:,}<extra></extra>",
    )
    figure.update_layout(bargap=0.3)
    figure.update_xaxes(title="user-item pairs", rangemode="tozero")
    figure.update_yaxes(automargin=True)
    return styled(figure, height=90 + 38 * len(names), legend=False)


def decile_plot(deciles: Sequence[Decile]) -> go.Figure:
    """Bars of who holds the candidates, exposures and clicks, by tenth of the items."""
    figure = go.Figure()
    x = [part["decile"] for part in deciles]
    for key, name, color in (
        ("candidates", "recalled candidates", GREY),
        ("exposures", "exposures", ORANGE),
        ("clicks", "clicks", GREEN),
    ):
        shares = [part[key] for part in deciles]  # type: ignore[literal-required]
        if any(shares):
            figure.add_bar(
                x=x,
                y=shares,
                name=name,
                marker={"color": color},
                hovertemplate="tenth %{x}, " + name + ": %{y:.1%}<extra></extra>",
            )
    figure.update_layout(barmode="group", bargap=0.2)
    figure.update_xaxes(title="tenth of the items, rarely to often exposed", dtick=1)
    figure.update_yaxes(title="share", tickformat=".0%", rangemode="tozero")
    return styled(figure, height=340)


def lorenz_plot(curves: Mapping[str, Sequence[float]]) -> go.Figure:
    """Cumulative share against the share of items, least first; the diagonal is equality.

    Args:
        curves: name -> shares at evenly spaced shares of the items, from 0 to 1.
    """
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        name="equality",
        line={"color": GREY, "dash": "dot", "width": 1},
        hoverinfo="skip",
    )
    colors = {"recalled candidates": GREY, "exposures": ORANGE, "clicks": GREEN}
    for (name, shares), spare in zip(curves.items(), cycle(len(curves)), strict=True):
        figure.add_scatter(
            x=[place / (len(shares) - 1) for place in range(len(shares))],
            y=list(shares),
            mode="lines",
            name=escape(name),
            line={"color": colors.get(name, spare), "width": 1.8},
            hovertemplate=escape(name) + ", lowest %{x:.0%}: %{y:.1%}<extra></extra>",
        )
    figure.update_xaxes(title="share of the items", tickformat=".0%", range=[0, 1])
    figure.update_yaxes(title="cumulative share", tickformat=".0%", range=[0, 1])
    return styled(figure, height=340)


def timing_plot(stages: Sequence[Mapping[str, Any]], most: int = 25) -> go.Figure:
    """Bars of the seconds of each artifact, the slowest ``most``, slowest on top."""
    rows = sorted(stages, key=lambda one: one["seconds"])[-most:]
    figure = go.Figure()
    figure.add_bar(
        x=[one["seconds"] for one in rows],
        y=[escape(one["stage"]) for one in rows],
        orientation="h",
        marker={"color": BLUE},
        hovertemplate="%{y}: %{x:.1f} s<extra></extra>",
    )
    figure.update_layout(bargap=0.25)
    figure.update_xaxes(title="seconds", rangemode="tozero")
    figure.update_yaxes(automargin=True)
    return styled(figure, height=90 + 20 * len(rows), legend=False)


def catalog_plot(points: CatalogMap) -> go.Figure:
    """Items in the plane, coloured by their first code."""
    figure = go.Figure()
    codes = [point["first_code"] for point in points["points"]]
    figure.add_scatter(
        x=[point["x"] for point in points["points"]],
        y=[point["y"] for point in points["points"]],
        mode="markers",
        text=[f"{escape(point['title'][:60])}<br>{point['sid']}" for point in points["points"]],
        hovertemplate="%{text}<extra></extra>",
        marker={"size": 5, "opacity": 0.75, "color": [code_color(code) for code in codes]},
    )
    first, second = points["explained"]
    figure.update_xaxes(title=f"first principal axis ({first:.0%} of the variance)")
    figure.update_yaxes(title=f"second principal axis ({second:.0%})")
    return styled(figure, height=520, legend=False)


def code_color(code: int) -> str:
    """Return a colour for a code; neighbouring codes get hues far apart (the golden angle)."""
    return f"hsl({(code * 137.508) % 360:.0f}, 62%, {(46, 60)[code % 2]}%)"


def cycle(n: int) -> list[str]:
    """Return the colours of ``n`` lines."""
    return [LINES[i % len(LINES)] for i in range(n)]


def rows_height(n: int) -> int:
    """Return the height of a figure of ``n`` named rows."""
    most, least = ROW_HEIGHT
    return 110 + n * max(least, min(most, ROWS_HEIGHT // max(1, n)))


def name_rows(figure: go.Figure, names: Sequence[str]) -> None:
    """Give each name (escaped) its row, the last one on top, and leave no space around them.

    A long name is cut beside its row, or it would take a phone's whole width; a hint has all of it.
    """
    figure.update_yaxes(
        categoryorder="array",
        categoryarray=list(names),
        range=[-0.6, len(names) - 0.4],
        tickmode="array",
        tickvals=list(range(len(names))),
        ticktext=[_cut(name) for name in names],
        tickfont={"size": 12 if len(names) <= 30 else 10.5},
        automargin=True,
    )


def _cut(name: str) -> str:
    plain = unescape(name)
    return name if len(plain) <= MOST_LETTERS else escape(plain[: MOST_LETTERS - 1]) + "…"


def styled(figure: go.Figure, height: int, *, legend: bool = True) -> go.Figure:
    """Give a figure the look of all pages."""
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 56, "r": 12, "t": 12, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12, "color": GREY},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "font": {"size": 11}},
        hoverlabel={"font": {"family": "system-ui, sans-serif"}},
        showlegend=legend,
    )
    axis = {"gridcolor": GRID, "zeroline": False, "title": {"font": {"size": 12}}}
    figure.update_xaxes(automargin=True, **axis)
    figure.update_yaxes(**axis)
    return figure
