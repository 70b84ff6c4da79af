"""The page of a simulated A/B test: one self-contained HTML file, readable without scripts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prerank.evaluation.html import render_alone
from prerank.evaluation.plots import Plot
from prerank.evaluation.plots_ab import day_plot, lift_plot
from prerank.simulation.show import cell, lift_text, names_of


def write_page(result: Mapping[str, Any], path: Path) -> None:
    """Write the page of ``result``, what ``simulation.json`` holds."""
    text = render_alone(
        "simulation.html.jinja",
        package="prerank.simulation",
        kind="simulation",
        title=f"{result['name']}: simulated A/B test",
        result=result,
        shown=names_of(result),
        cells=cells(result),
        pairs=pair_cells(result),
        plots=ab_plots(result),
    )
    path.write_text(text, encoding="utf-8")


def cells(result: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return arm -> the texts of its row, one a shown metric."""
    lines = {(line["arm"], line["metric"]): line for line in result["lines"]}
    metrics = names_of(result)
    return {arm: [cell(lines[arm, metric]) for metric in metrics] for arm in result["arms"]}


def pair_cells(
    result: Mapping[str, Any], text: Callable[[Mapping[str, Any]], str] = lift_text
) -> dict[str, list[str]]:
    """Return arm -> its lifts over each arm as ``text`` writes them; results of before have none.

    With two arms there is nothing that the first table does not say.
    """
    pairs = result.get("against", {})
    if len(pairs) < 3:
        return {}
    return {
        arm: [text(row[other]) if other in row else "" for other in pairs]
        for arm, row in pairs.items()
    }


def ab_plots(result: Mapping[str, Any]) -> list[Plot]:
    """Return the plots of a result, as the inspector shows them too."""
    return [
        Plot("Click rate by day", day_plot(result)),
        Plot(f"CTR lift over {result['baseline']}", lift_plot(result, "ctr")),
        Plot("Lift of the long tail's share of clicks", lift_plot(result, "tail_clicks")),
    ]
