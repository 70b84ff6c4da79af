"""Data and model cards: what a stranger must know before trusting a number or a pre-ranker."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prerank.artifacts import SPLITS, TEST, Dataset, PseudoLabels
from prerank.evaluation.extra import Card

TIMES = {
    "ms": "UTC milliseconds; histories end strictly before the request",
    "order": "positions in each user's order",
    "none": "no time: histories are sets, the split is random",
}
LIMITS = [
    "Scores are logits of a click: they order candidates. As click rates they are calibrated only "
    "as far as the report says; pseudo-labels move the base rate on purpose.",
    "Unknown users and items are scored without id, features and history: guesses close to the "
    "average.",
    "Nothing was tested for fairness between groups of users or of item providers.",
]


def data_card(dataset: Dataset) -> Card:
    """Return what the dataset holds and how it was cut."""
    log, rows, pools = dataset.exposures, dataset.candidates, dataset.pools
    truth = ~np.isnan(rows.truth)
    facts = [
        ["name", dataset.name],
        ["users", f"{len(dataset.users):,}"],
        ["items", f"{len(dataset.items):,}"],
        *[[f"exposures, {name}", _clicks(log.click[log.split == k])] for k, name in _splits()],
        ["recalled candidates", f"{len(rows):,}" if len(rows) else "not logged"],
        ["candidates with known truth", f"{int(truth.sum()):,}"],
        ["positive interactions", f"{len(dataset.interactions):,}"],
        *[
            [f"pool {name}, test", _clicks(pools.click[(pools.pool == k) & (pools.split == TEST)])]
            for k, name in enumerate(pools.pools)
        ],
        ["user features", _features(dataset.user_features)],
        ["item features", _features(dataset.catalog.features)],
        ["time", TIMES[dataset.time_unit]],
        ["anchors see interactions before", _moment(dataset.cuts.anchors, dataset.time_unit)],
        ["validation starts", _moment(dataset.cuts.validation, dataset.time_unit)],
        ["test starts", _moment(dataset.cuts.test, dataset.time_unit)],
    ]
    return {
        "title": f"Data: {dataset.name}",
        "facts": facts,
        "notes": list(dataset.notes) or ["The data set came without notes."],
    }


def model_card(
    method: str,
    config: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    n_parameters: int,
    seeds: Sequence[int],
    labels: PseudoLabels | None,
) -> Card:
    """Return what the pre-ranker of ``method`` is, what it learned from, and its limits.

    Args:
        method: its name.
        config: settings it was trained with.
        history: one record an epoch.
        n_parameters: numbers in its weights.
        seeds: training seeds of the run.
        labels: the pseudo-labels it learned from, None for clicks alone.
    """
    reads = [
        name
        for key, name in (
            ("use_user_id", "user id"),
            ("use_item_id", "item id"),
            ("use_content", "frozen content vector"),
            ("use_history", "history"),
            ("use_popularity", "training exposures of the item"),
        )
        if config.get(key)
    ]
    facts = [
        ["method", method],
        ["model", str(config.get("model", ""))],
        ["parameters", f"{n_parameters:,}"],
        ["reads", ", ".join([*reads, "features of the log"])],
        ["objective", str(config.get("objective", ""))],
        ["trained on", _learned_from(config, labels)],
        ["training seeds", ", ".join(map(str, seeds))],
        ["epochs of the first seed", str(len(history))],
        ["for", "ordering recalled candidates before the ranker; scores are logits of a click"],
        ["not for", "anything shown as a probability, or decisions about people"],
    ]
    return {"title": f"Model: {method}", "facts": facts, "notes": list(LIMITS)}


def _learned_from(config: Mapping[str, Any], labels: PseudoLabels | None) -> str:
    if labels is None:
        return "exposed clicks alone"
    kept = int((labels.confidence > 0).sum())
    weight = float(config.get("pseudo_weight", 0.0))
    return f"exposed clicks and {kept:,} pseudo-labels ({labels.source}), weight {weight:.3g}"


def _splits() -> list[tuple[int, str]]:
    return list(enumerate(SPLITS))


def _clicks(click: Any) -> str:
    known = click[click >= 0]
    text = f"{len(click):,} rows"
    return f"{text}, {(known == 1).mean():.1%} clicked" if len(known) else text


def _features(features: Any) -> str:
    names = [*features.categorical, *features.numeric, *features.lists, *features.vectors]
    return ", ".join(sorted(names)) or "none"


def _moment(value: int | None, unit: str) -> str:
    if value is None or unit == "none":
        return "not cut by time"
    if unit == "order":
        return f"position {value}"
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(value / 1000))
