"""The report as one self-contained HTML page: no network, no build step, readable without scripts.

Titles of items and ids of users are other people's text: the template escapes everything, figures
travel as JSON with ``<`` escaped, and the page's own policy forbids it to load anything.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from prerank.artifacts import Record, Report
from prerank.evaluation import plots, summary
from prerank.evaluation.sheets import (
    Sheet,
    ablation_sheet,
    audit_sheets,
    cost_sheet,
    pool_sheets,
    tally_sheet,
    tuning_sheet,
)
from prerank.evaluation.view import COMPETING, Role, View, excludes_zero, view

OPEN_SEGMENTS = ("all", "tail")
FEW = 5
METRIC_NAMES = {
    "auc": "AUC",
    "gauc": "GAUC",
    "hr": "HR",
    "ndcg": "NDCG",
    "ece": "ECE",
    "coverage": "coverage",
    "gini": "Gini",
    "ild": "diversity",
    "share": "share",
}
SEGMENT_NAMES = {"all": "all items", "head": "head items", "mid": "mid items", "tail": "long tail"}


@dataclass(frozen=True)
class Cell:
    """One number of a table, ready to print."""

    value: str
    interval: str = ""
    mark: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """One method of a table."""

    name: str
    role: Role
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class SegmentTable:
    """All methods on one segment of one pool."""

    title: str
    open: bool
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Plot:
    """One figure of the page."""

    title: str
    figure: go.Figure


@dataclass(frozen=True)
class PoolSection:
    """One pool of the page."""

    name: str
    facts: str
    tables: tuple[SegmentTable, ...]
    plots: tuple[Plot, ...]


@dataclass(frozen=True)
class ComparisonSection:
    """One pool of a comparison's page."""

    name: str
    facts: str
    sheets: tuple[Sheet, ...]
    plots: tuple[Plot, ...]


def write_html(report: Report, path: Path, *, title: str = "") -> None:
    """Write the report's page.

    Args:
        report: from `evaluate`, its ``extra`` filled as `ReportExtra` says; absent keys leave
            their section out.
        path: the file to write.
        title: of the page; the report's own ``title`` or "Report" by default.
    """
    path.write_text(render_html(report, title=title), encoding="utf-8")


def render_html(report: Report, *, title: str = "") -> str:
    """Return the page as text; see `write_html`."""
    seen = view(report)
    extra = seen.extra
    return _render(
        "report.html.jinja",
        kind="report",
        title=title or extra.get("title") or "Report",
        summary=summary.summarise(seen),
        seeds=max((record.seeds for record in report.records), default=1),
        level=f"{seen.config.interval:.0%}",
        config=seen.config,
        baseline=seen.baseline,
        pools=[_pool(seen, pool) for pool in seen.pools],
        label_plots=_label_plots(seen),
        labels=extra.get("labels", {}),
        quality=extra.get("semantic_ids"),
        quality_plots=_quality_plots(extra.get("semantic_ids")),
        anchors=extra.get("anchors"),
        users=extra.get("users", []),
        notes=extra.get("notes", []),
        stages=extra.get("stages", []),
        recipe=_recipe(extra.get("recipe")),
        versions=extra.get("versions", {}),
        sheets=_with_rows([ablation_sheet(seen), *audit_sheets(seen), cost_sheet(seen)]),
        audit_plots=_audit_plots(seen),
    )


def write_comparison(report: Report, path: Path, *, title: str = "") -> None:
    """Write the page of a comparison: every sheet, and the plots of the main metric by pool."""
    seen = view(report)
    sections = [
        ComparisonSection(
            pool,
            _facts(seen.extra.get("evaluation", {}).get("pools", {}).get(pool)),
            tuple(_with_rows(pool_sheets(seen, pool))),
            tuple(_metric_plots(seen, pool)),
        )
        for pool in seen.pools
    ]
    rest = [tally_sheet(seen), ablation_sheet(seen), cost_sheet(seen), tuning_sheet(seen)]
    text = _render(
        "comparison.html.jinja",
        kind="comparison",
        title=title or seen.extra.get("title") or "Comparison",
        summary=summary.summarise(seen),
        notes=seen.extra.get("notes", []),
        versions=seen.extra.get("versions", {}),
        sections=sections,
        sheets=_with_rows([*rest, *audit_sheets(seen)]),
        audit_plots=_audit_plots(seen),
    )
    path.write_text(text, encoding="utf-8")


def _render(template: str, **values: Any) -> str:
    """Return a page of the package's templates, with its figures and scripts inside."""
    page = _Page()
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        loader=FunctionLoader(
            lambda name: (files("prerank.evaluation") / name).read_text(encoding="utf-8")
        ),
    )
    environment.filters["number"] = summary.number
    return environment.get_template(template).render(
        **values,
        plot=page.add,
        figures=page.figures,
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
    )


def _with_rows(sheets: Sequence[Sheet]) -> list[Sheet]:
    return [sheet for sheet in sheets if sheet.rows]


class _Page:
    """Numbers the figures in the order in which the template asks for them."""

    def __init__(self) -> None:
        self._jsons: list[str] = []

    def add(self, figure: go.Figure) -> dict[str, Any]:
        self._jsons.append(figure.to_json())
        return {"id": f"plot-{len(self._jsons)}", "height": figure.layout.height}

    def figures(self) -> Markup:
        """Return all figures as a JSON list that is safe inside a script element."""
        joined = f"[{','.join(self._jsons)}]"
        return Markup(joined.replace("<", "\\u003c").replace(">", "\\u003e"))


def _pool(seen: View, pool: str) -> PoolSection:
    tables = [_table(seen, pool, segment) for segment in seen.segments]
    found = _metric_plots(seen, pool)
    found += _bias_plot(seen, pool)
    about = seen.extra.get("evaluation", {}).get("pools", {}).get(pool)
    if about and about["reliability"]:
        curves = _few(seen, about["reliability"])
        figure = plots.reliability_plot(curves, "predicted click probability")
        found.append(Plot("Reliability of the scores, first seed", figure))
    return PoolSection(pool, _facts(about), tuple(tables), tuple(found))


def _metric_plots(seen: View, pool: str) -> list[Plot]:
    found = []
    for segment in OPEN_SEGMENTS:
        rows = [
            (record, role)
            for name, role in seen.main
            if (record := seen.record(name, pool, segment, "gauc")) is not None
        ]
        if any(record.value is not None for record, _ in rows):
            where = SEGMENT_NAMES[segment]
            figure = plots.metric_plot(rows, f"GAUC, {where}", seen.baseline)
            found.append(Plot(f"GAUC with {seen.config.interval:.0%} intervals, {where}", figure))
    return found


def _audit_plots(seen: View) -> list[Plot]:
    """Return how good the labels are by popularity and by confidence, of the methods that have."""
    audits = seen.extra.get("audit", {})
    names = [name for name, role in seen.methods if name in audits and role in COMPETING]
    few = [n for n in names if audits[n]["all"]["auc"] != 0.5][: len(plots.LINES)]
    found = []
    for key, title, axis in (
        ("by_popularity", "AUC of the pseudo-labels by popularity", "tenth, rare to popular"),
        ("by_confidence", "AUC of the pseudo-labels by confidence", "fifth, unsure to sure"),
    ):
        curves = {name: [part["auc"] for part in audits[name][key]] for name in few}
        curves = {name: values for name, values in curves.items() if len(values) > 1}
        if curves:
            found.append(Plot(title, plots.parts_plot(curves, axis, "AUC")))
    return found


def _facts(about: Any) -> str:
    if not about:
        return ""
    rate = about["clicks"] / max(1, about["rows"])
    return (
        f"{about['users']:,} users, {about['requests']:,} requests, {about['rows']:,} rows, "
        f"{about['items']:,} items, {rate:.1%} of the rows clicked, "
        f"{about['segments'].get('tail', 0) / max(1, about['rows']):.0%} of them long tail"
    )


def _few(seen: View, by_method: dict[str, Any]) -> dict[str, Any]:
    """Return the methods a crowded plot can show: method, baseline, history control, two more."""
    first = [seen.config.method, seen.baseline, seen.config.history_control]
    names = dict.fromkeys([*first, *(name for name, role in seen.methods if role == "other")])
    return {name: by_method[name] for name in [n for n in names if n in by_method][:FEW]}


def _bias_plot(seen: View, pool: str) -> list[Plot]:
    """Return the plot of who gets the lists' places, next to candidates and clicks."""
    about = seen.extra.get("evaluation", {}).get("pools", {}).get(pool)
    shares: dict[str, dict[str, float]] = {}
    if about:
        shares["candidates"] = about["shares"]["candidates"]
        shares["clicks"] = about["shares"]["clicks"]
    size = seen.config.list_size
    for name, _ in seen.main:
        records = {
            segment: seen.record(name, pool, segment, f"share@{size}") for segment in seen.segments
        }
        found = {s: r.value for s, r in records.items() if r is not None and r.value is not None}
        if found:
            shares[name] = found
    if not shares:
        return []
    title = f"Exposure bias: who holds the top {size} places"
    return [Plot(title, plots.share_plot(shares))]


def _label_plots(seen: View) -> list[Plot]:
    by_method = seen.extra.get("labels", {})
    names = dict.fromkeys([*(name for name, role in seen.methods if role != "ceiling"), *by_method])
    labels = {name: by_method[name] for name in names if name in by_method}
    soft = {n: v for n, v in labels.items() if _is_soft(v.get("histogram"))}
    labels = dict(list(soft.items())[: len(plots.LINES)])
    found: list[Plot] = []
    if labels:
        histograms = {name: one["histogram"] for name, one in labels.items()}
        figure = plots.histogram_plot(histograms, "pseudo-label")
        found.append(Plot("Histogram of the pseudo-labels", figure))
    curves = {n: v["reliability"] for n, v in labels.items() if v.get("reliability")}
    if curves:
        where = next((v["reliability_on"] for v in labels.values() if v.get("reliability_on")), "")
        title = f"Reliability of the pseudo-labels ({where})" if where else "Reliability"
        found.append(Plot(title, plots.reliability_plot(curves, "pseudo-label")))
    knots = {name: one["knots"] for name, one in labels.items() if one.get("knots")}
    if knots:
        found.append(Plot("Map from relevance to pseudo-label", plots.map_plot(knots)))
    return found


def _is_soft(histogram: Any) -> bool:
    """Say whether labels take more than the hard values 0 and 1: those tell a plot nothing."""
    return bool(histogram) and any(histogram["counts"][1:-1])


def _quality_plots(quality: Any) -> list[Plot]:
    if not quality or not quality.get("codebook_sizes"):
        return []
    return [Plot("Use of the codebooks", plots.codebook_plot(quality))]


def _table(seen: View, pool: str, segment: str) -> SegmentTable:
    metrics = list(
        dict.fromkeys(metric for _, p, s, metric in seen.records if p == pool and s == segment)
    )
    compared = [m for m in ("gauc",) if m in metrics and seen.baseline]
    header, getters = [], []
    for metric in ["gauc", *(m for m in metrics if m != "gauc")]:
        if metric not in metrics:
            continue
        header.append(_metric_name(metric))
        getters.append((metric, False))
        if metric in compared:
            header.append(f"Δ {_metric_name(metric)}")
            getters.append((metric, True))
    reasons: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    rows = []
    for name, role in seen.main:
        cells = []
        for metric, is_difference in getters:
            find = seen.difference if is_difference else seen.record
            record = find(name, pool, segment, metric)
            cells.append(_cell(record, sign=is_difference))
            if record is not None and record.reason:
                of_metrics, of_methods = reasons.setdefault(record.reason, ({}, {}))
                of_metrics[_metric_name(metric)] = of_methods[name] = None
        rows.append(Row(name, role, tuple(cells)))
    return SegmentTable(
        title=SEGMENT_NAMES.get(segment, segment),
        open=segment in OPEN_SEGMENTS,
        header=tuple(header),
        rows=tuple(rows),
        reasons=tuple(
            f"{', '.join(of_metrics)} of {_some(list(of_methods))}: {why}"
            for why, (of_metrics, of_methods) in reasons.items()
        ),
    )


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= FEW else f"{len(names)} methods"


def _metric_name(metric: str) -> str:
    name, at, k = metric.partition("@")
    return METRIC_NAMES.get(name, name) + at + k


def _cell(record: Record | None, *, sign: bool) -> Cell:
    if record is None:
        return Cell("")
    if record.value is None:
        return Cell("–", reason=record.reason)
    mark = ""
    if sign and excludes_zero(record):
        mark = "▲" if record.value > 0 else "▼"
    return Cell(
        summary.number(record.value, sign=sign),
        summary.interval(record, sign=sign),
        mark,
        record.reason,
    )


def _recipe(recipe: Any) -> str:
    if not recipe:
        return ""
    return recipe if isinstance(recipe, str) else json.dumps(recipe, indent=1, default=str)
