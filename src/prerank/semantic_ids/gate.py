"""The quality gate: semantic IDs that tell items apart too badly stop the run here, not later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prerank.artifacts import require
from prerank.semantic_ids.config import GateConfig


def check(about: Mapping[str, Any], config: GateConfig) -> None:
    """Raise DataError if the quality report ``about`` breaks a threshold.

    Catalogues with fewer than ``min_items`` items with content pass: a single item, or ten equal
    ones, cannot do better than one semantic ID.
    """
    n_content = about["n_items"] - about["n_without_content"]
    if n_content < config.min_items:
        return
    # Where nothing was fitted, unused codes are items that are gone or have no content.
    fitted = "appended" not in about and about.get("trainer") != "item-id"
    for level, size in enumerate(about["codebook_sizes"] if fitted else ()):
        used, perplexity = about["codes_used"][level], about["perplexity"][level]
        _demand(
            used >= config.min_used_share * size,
            f"level {level} uses {used} of its {size} codes: the codebook has collapsed",
            "min_used_share",
            f"at least {config.min_used_share:.0%} of the codes in use",
            f"{used / size:.1%}",
        )
        _demand(
            perplexity >= config.min_perplexity_share * size,
            f"level {level} uses its {size} codes too unevenly",
            "min_perplexity_share",
            f"a perplexity of at least {config.min_perplexity_share:.0%} of the codes",
            f"{perplexity:.1f}",
        )
    share = about["largest_bucket"] / n_content
    _demand(
        share <= config.max_bucket_share,
        f"one semantic ID holds {about['largest_bucket']} of {n_content} items",
        "max_bucket_share",
        f"at most {config.max_bucket_share:.0%} of the items in one semantic ID",
        f"{share:.1%}",
    )


def _demand(ok: bool, what: str, key: str, must: str, got: str) -> None:
    require(ok, f"quality gate: {what}", where=f"tokenize.gate.{key}", must=must, got=got)
