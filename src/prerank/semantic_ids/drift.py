"""What changed between two generations of semantic IDs."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import adjusted_rand_score

from prerank.artifacts import ItemEmbeddings, SemanticIds
from prerank.errors import ArtifactError
from prerank.semantic_ids.quality import buckets, residuals
from prerank.semantic_ids.tokenize import restore


def drift(
    before: SemanticIds, after: SemanticIds, embeddings: ItemEmbeddings | None = None
) -> dict[str, Any]:
    """Compare two generations item by item; plain JSON values.

    Args:
        before, after: two generations with item ids, of one number of levels.
        embeddings: those that ``after`` was made from; without them no residuals of new items.

    Returns:
        ``n_before``, ``n_after``, ``n_common``, ``n_new``, ``n_removed``: items;
        ``moved_share``: per level, share of the common items whose codes up to and including it
        differ; a codebook fitted anew renames all its codes, then this is near 1;
        ``grouping_kept``: per level, adjusted Rand index of the two groupings of the common items:
        1 the same groups under whatever names, 0 no more than chance;
        ``residual_norm_change``: per level, after minus before, from the two quality reports;
        ``residual_norm_common``, ``residual_norm_new``: per level, mean length left over under
        ``after``; None without embeddings or without such items.

    Raises:
        ArtifactError: item ids are missing, or the numbers of levels differ.
    """
    if before.items is None or after.items is None:
        raise ArtifactError("the semantic IDs do not say whose they are", hint="tokenize again")
    if before.n_levels != after.n_levels:
        raise ArtifactError(
            "the generations have different levels", must=str(before.n_levels), got=after.n_levels
        )
    row = before.items.lookup(after.items.ids)
    common = np.flatnonzero(row >= 0)
    new = np.flatnonzero(row < 0)
    old_CL, now_CL = before.codes[row[common]], after.codes[common]
    moved_CL = np.logical_or.accumulate(old_CL != now_CL, axis=1)
    levels = range(1, after.n_levels + 1)
    report: dict[str, Any] = {
        "n_before": len(before.items),
        "n_after": len(after.items),
        "n_common": len(common),
        "n_new": len(new),
        "n_removed": len(before.items) - len(common),
        "moved_share": moved_CL.mean(axis=0).tolist() if len(common) else None,
        "grouping_kept": [
            float(
                adjusted_rand_score(
                    buckets(old_CL[:, :n], before.codebook_sizes[:n].tolist())[0],
                    buckets(now_CL[:, :n], after.codebook_sizes[:n].tolist())[0],
                )
            )
            for n in levels
        ]
        if len(common)
        else None,
        "residual_norm_change": _change(before, after),
        "residual_norm_common": None,
        "residual_norm_new": None,
    }
    if embeddings is not None:
        tokenizer, vectors = restore(after), embeddings.vectors
        for name, rows in (("common", common), ("new", new)):
            rows = rows[vectors[rows].any(axis=1)]
            if len(rows):
                report[f"residual_norm_{name}"] = residuals(vectors, after.codes, tokenizer, rows)[
                    0
                ]
    return report


def _change(before: SemanticIds, after: SemanticIds) -> list[float] | None:
    key = "residual_norm"
    if key not in before.quality or key not in after.quality:
        return None
    pairs = zip(before.quality[key], after.quality[key], strict=True)
    return [now - then for then, now in pairs]
