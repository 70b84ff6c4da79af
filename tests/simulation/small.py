"""A simulated A/B test of seconds: a small world, a tiny language model."""

from pathlib import Path
from typing import Any

from prerank.recipe import Recipe, parse_recipe

WORLD = {
    "n_users": 120,
    "n_items": 160,
    "n_brands": 10,
    "n_history_days": 8,
    "organic_per_user": 10.0,
    "new_item_share": 0.4,
    "n_recalled": 60,
    "n_preranked": 12,
    "n_ranked": 8,
    "n_exposed": 5,
    "max_pages": 2,
}
SIMULATE = {
    "n_days": 2,
    "n_replications": 2,
    "requests_per_day": 80,
    "n_log_days": 2,
    "window": 2,
    "anchors_every": 1,
    "checkpoint_days": 1,
}
METHODS: dict[str, Any] = {
    "exposed-only": {"label": {"source": "none"}},
    "gpl": {"anchors": "llm"},
    "gpl-history": {"anchors": "history"},
}


def small_recipe(out: Path, **sections: Any) -> Recipe:
    """Return the recipe with keys of its sections replaced by those of ``sections``."""
    values: dict[str, Any] = {
        "out": str(out),
        "prepare": {"world": WORLD},
        "tokenize": {"codebook_size": 8},
        "finetune": {"hidden_size": 16, "intermediate_size": 32, "n_layers": 1, "epochs": 1},
        "generate": {"n_anchors": 6, "beam_width": 8},
        "train": {"epochs": 2, "threads": 1, "pseudo_weight": 3.0},
        "simulate": SIMULATE,
        "methods": METHODS,
    }
    for name, changed in sections.items():
        kept = values.get(name, {})
        values[name] = {**kept, **changed} if name != "methods" else changed
    return parse_recipe(values)
