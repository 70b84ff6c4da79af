"""The plots of each section, from a report's extra: the report and the inspector show the same."""

from __future__ import annotations

from typing import Any

from prerank.evaluation import plots
from prerank.evaluation.lineage import Lineage, lineage
from prerank.evaluation.plots import Plot
from prerank.evaluation.view import COMPETING, View

OPEN_SEGMENTS = ("all", "tail")
FEW = 5
PARTS = (
    ("by_popularity", "by popularity", "tenth of the pairs, rare to popular"),
    ("by_confidence", "by confidence", "fifth of the pairs, unsure to sure"),
)
SEGMENT_NAMES = {"all": "all items", "head": "head items", "mid": "mid items", "tail": "long tail"}


def metric_plots(seen: View, pool: str) -> list[Plot]:
    """Return GAUC of every method with intervals, on all items and on the tail."""
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


def audit_plots(seen: View) -> list[Plot]:
    """Return how good the labels are by popularity and by confidence, of the methods that have."""
    audits = seen.extra.get("audit", {})
    names = [name for name, role in seen.methods if name in audits and role in COMPETING]
    soft = [n for n in names if audits[n]["all"]["auc"] != 0.5][: len(plots.LINES)]
    return plots_of_audits({name: audits[name] for name in soft})


def plots_of_audits(audits: dict[str, Any]) -> list[Plot]:
    """Return the AUC of some methods' pseudo-labels by popularity and by confidence."""
    found = []
    for key, title, axis in PARTS:
        curves = {name: [part["auc"] for part in one[key]] for name, one in audits.items()}
        curves = {name: values for name, values in curves.items() if len(values) > 1}
        if curves:
            figure = plots.parts_plot(curves, axis, "AUC")
            found.append(Plot(f"AUC of the pseudo-labels {title}", figure))
    return found


def pool_facts(seen: View, pool: str) -> str:
    """Return one line on the size and make-up of a pool, empty if unknown."""
    about = seen.facts(pool)
    if about is None:
        return ""
    rate = about["clicks"] / max(1, about["rows"])
    return (
        f"{seen.users(pool)}, {about['requests']:,} requests, {about['rows']:,} rows, "
        f"{about['items']:,} items, {rate:.1%} of the rows clicked, "
        f"{about['segments'].get('tail', 0) / max(1, about['rows']):.0%} of them long tail"
    )


def few(seen: View, by_method: dict[str, Any]) -> dict[str, Any]:
    """Return the methods a crowded plot can show: method, baseline, history control, two more."""
    first = [seen.config.method, seen.baseline, seen.config.history_control]
    names = dict.fromkeys([*first, *(name for name, role in seen.methods if role == "other")])
    return {name: by_method[name] for name in [n for n in names if n in by_method][:FEW]}


def bias_plots(seen: View, pool: str) -> list[Plot]:
    """Return the plot of who gets the lists' places, next to candidates and clicks."""
    about = seen.facts(pool)
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


def label_plots(seen: View) -> list[Plot]:
    """Return the pseudo-labels of all methods that have soft ones, ceilings left out."""
    by_method = seen.extra.get("labels", {})
    names = dict.fromkeys([*(name for name, role in seen.methods if role != "ceiling"), *by_method])
    return plots_of_labels({name: by_method[name] for name in names if name in by_method})


def plots_of_labels(labels: dict[str, Any]) -> list[Plot]:
    """Return histogram, reliability, map and means by part of some methods' pseudo-labels."""
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
    for key, title, axis in PARTS:
        means = {n: [part["mean_label"] for part in v.get(key, ())] for n, v in labels.items()}
        means = {name: values for name, values in means.items() if len(values) > 1}
        if means:
            found.append(Plot(f"Mean pseudo-label {title}", plots.parts_plot(means, axis, "mean")))
    return found


def _is_soft(histogram: Any) -> bool:
    """Say whether labels take more than the hard values 0 and 1: those tell a plot nothing."""
    return bool(histogram) and any(histogram["counts"][1:-1])


def quality_plots(quality: Any) -> list[Plot]:
    """Return how far each level's codebook is used."""
    if not quality or not quality.get("codebook_sizes"):
        return []
    return [Plot("Use of the codebooks", plots.codebook_plot(quality))]


def cascade_plots(cascade: Any) -> list[Plot]:
    """Return the funnel and who holds the exposures."""
    if not cascade:
        return []
    return [
        Plot("Funnel of the training requests", plots.funnel_plot(cascade["funnel"])),
        Plot("Exposure bias by popularity", plots.decile_plot(cascade["deciles"])),
        Plot("Lorenz curve over the items", plots.lorenz_plot(cascade["lorenz"])),
    ]


def map_plots(found: Any) -> list[Plot]:
    """Return the catalogue in the plane."""
    if not found or not found["points"]:
        return []
    return [Plot("Map of the catalogue", plots.catalog_plot(found))]


def timing_plots(stages: Any) -> list[Plot]:
    """Return the seconds of each artifact."""
    return [Plot("Seconds of the slowest artifacts", plots.timing_plot(stages))] if stages else []


def graph_of(stages: Any) -> Lineage | None:
    """Return the lineage graph, None where a report does not know it."""
    return lineage(stages) if stages else None
