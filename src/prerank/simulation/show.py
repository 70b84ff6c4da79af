"""The result of a simulated A/B test on a terminal, readable without colour at 100 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from prerank.progress import shown

WIDTH = 100
SHOWN: Mapping[str, str] = {
    "ctr": "CTR",
    "page_views": "page views",
    "clicks_per_visit": "clicks/visit",
    "categories": "categories",
    "categories_clicked": "categories clicked",
    "diversity": "diversity",
    "coverage": "coverage",
    "tail_exposures": "tail exposures",
    "tail_clicks": "tail clicks",
    "new_exposures": "new exposures",
    "new_discovered": "new discovered",
}
BLOCKS = (
    ("ctr", "page_views", "clicks_per_visit"),
    ("categories", "categories_clicked", "diversity", "coverage"),
    ("tail_exposures", "tail_clicks", "new_exposures", "new_discovered"),
)


def names_of(result: Mapping[str, Any]) -> dict[str, str]:
    """Return metric -> its short name, of those that ``result`` has; older ones lack some."""
    return {metric: name for metric, name in SHOWN.items() if metric in result["metrics"]}


def print_result(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the level of the baseline and every arm's lift over it, in blocks."""
    out = console or Console(width=max(WIDTH, Console().width))
    title = (
        f"{result['name']}: lift over {result['baseline']} in %, {result['n_days']} days, "
        f"{result['n_replications']} replications"
    )
    for block in BLOCKS:
        out.print(_table(result, block, title))
        out.print()
    level = f"{result['interval']:.0%}"
    out.print(
        shown(
            f"± half of the {level} interval over replications, paired by common random numbers\n"
            f"* the interval excludes 0; the row of {result['baseline']} holds levels, not lifts",
            "dim",
        )
    )


def _table(result: Mapping[str, Any], block: tuple[str, ...], title: str) -> Table:
    lines = {(line["arm"], line["metric"]): line for line in result["lines"]}
    table = Table(
        title=shown(title, "bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    table.add_column("arm", no_wrap=True, overflow="ellipsis", max_width=20)
    known = [metric for metric in block if metric in result["metrics"]]
    for metric in known:
        table.add_column(SHOWN[metric], justify="right", no_wrap=True, min_width=14)
    for arm in result["arms"]:
        cells = [cell(lines[arm, metric]) for metric in known]
        table.add_row(*map(shown, (arm, *cells)))
    return table


def cell(line: Mapping[str, Any]) -> str:
    """Return a lift as ``+3.1 ±0.4*``; the level where there is no lift."""
    if line["lift"] is None:
        value = line["level"]["value"]
        return "n/a" if value is None else f"{value:.4g}"
    return lift_text(line["lift"])


def lift_text(found: Mapping[str, Any]) -> str:
    """Return an estimate as ``+3.1 ±0.4*``."""
    if found["value"] is None:
        return "n/a"
    if found["low"] is None:
        return f"{found['value']:+.1f}"
    mark = "*" if found["low"] > 0 or found["high"] < 0 else "\N{NO-BREAK SPACE}"
    return f"{found['value']:+.1f} ±{(found['high'] - found['low']) / 2:.1f}{mark}"
