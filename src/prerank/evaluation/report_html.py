"""The report as one self-contained HTML page: no network, no build step, readable without scripts.

Titles of items and ids of users are other people's text: the template escapes everything, figures
travel as JSON with ``<`` escaped, and the page's own policy forbids it to load anything.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prerank.artifacts import LEAST_USERS, Record, Report
from prerank.evaluation import plots, sections, summary
from prerank.evaluation.html import render_alone
from prerank.evaluation.plots import Plot
from prerank.evaluation.sheets import (
    Sheet,
    ablation_sheet,
    audit_sheets,
    cost_sheet,
    pool_sheets,
    tally_sheet,
    tuning_sheet,
)
from prerank.evaluation.view import Role, View, shows_difference, view

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
    return render_alone(
        "report.html.jinja",
        kind="report",
        title=title or extra.get("title") or "Report",
        summary=summary.summarise(seen),
        seeds=max((record.seeds for record in report.records), default=1),
        level=f"{seen.config.interval:.0%}",
        config=seen.config,
        baseline=seen.baseline,
        least_users=LEAST_USERS,
        closed=summary.no_weight(seen, [name for name, _ in seen.main]),
        pools=[_pool(seen, pool) for pool in seen.pools],
        label_plots=sections.label_plots(seen),
        labels=extra.get("labels", {}),
        quality=extra.get("semantic_ids"),
        quality_plots=sections.quality_plots(extra.get("semantic_ids")),
        anchors=extra.get("anchors"),
        users=extra.get("users", []),
        notes=extra.get("notes", []),
        stages=extra.get("stages", []),
        recipe=_recipe(extra.get("recipe")),
        versions=extra.get("versions", {}),
        sheets=_with_rows([ablation_sheet(seen), *audit_sheets(seen), cost_sheet(seen)]),
        audit_plots=sections.audit_plots(seen),
        cascade=extra.get("cascade"),
        cascade_plots=sections.cascade_plots(extra.get("cascade")),
        map=extra.get("map"),
        map_plots=sections.map_plots(extra.get("map")),
        cards=[extra[key] for key in ("data_card", "model_card") if key in extra],
        graph=sections.graph_of(extra.get("stages")),
        timing_plots=sections.timing_plots(extra.get("stages")),
    )


def write_comparison(report: Report, path: Path, *, title: str = "") -> None:
    """Write the page of a comparison: every sheet, and the plots of the main metric by pool."""
    seen = view(report)
    pools = [
        ComparisonSection(
            pool,
            sections.pool_facts(seen, pool),
            tuple(_with_rows(pool_sheets(seen, pool))),
            tuple(sections.metric_plots(seen, pool)),
        )
        for pool in seen.pools
    ]
    rest = [tally_sheet(seen), ablation_sheet(seen), cost_sheet(seen), tuning_sheet(seen)]
    text = render_alone(
        "comparison.html.jinja",
        kind="comparison",
        title=title or seen.extra.get("title") or "Comparison",
        summary=summary.summarise(seen),
        notes=seen.extra.get("notes", []),
        versions=seen.extra.get("versions", {}),
        sections=pools,
        sheets=_with_rows([*rest, *audit_sheets(seen)]),
        audit_plots=sections.audit_plots(seen),
    )
    path.write_text(text, encoding="utf-8")


def _with_rows(sheets: Sequence[Sheet]) -> list[Sheet]:
    return [sheet for sheet in sheets if sheet.rows]


def _pool(seen: View, pool: str) -> PoolSection:
    tables = [_table(seen, pool, segment) for segment in seen.segments]
    found = sections.metric_plots(seen, pool)
    found += sections.bias_plots(seen, pool)
    about = seen.facts(pool)
    if about and about["reliability"]:
        curves = sections.few(seen, about["reliability"])
        figure = plots.reliability_plot(curves, "predicted click probability")
        found.append(Plot("Reliability of the scores, first seed", figure))
    return PoolSection(pool, sections.pool_facts(seen, pool), tuple(tables), tuple(found))


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
        title=sections.SEGMENT_NAMES.get(segment, segment),
        open=segment in sections.OPEN_SEGMENTS,
        header=tuple(header),
        rows=tuple(rows),
        reasons=tuple(
            f"{', '.join(of_metrics)} of {_some(list(of_methods))}: {why}"
            for why, (of_metrics, of_methods) in reasons.items()
        ),
    )


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= sections.FEW else f"{len(names)} methods"


def _metric_name(metric: str) -> str:
    name, at, k = metric.partition("@")
    return METRIC_NAMES.get(name, name) + at + k


def _cell(record: Record | None, *, sign: bool) -> Cell:
    if record is None:
        return Cell("")
    if record.value is None:
        return Cell("–", reason=record.reason)
    mark = ""
    if sign and shows_difference(record):
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
