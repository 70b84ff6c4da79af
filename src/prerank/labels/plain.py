"""Pseudo-labels without anchors: what a label is, and nothing of where it was matched."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import PseudoLabels
from prerank.data.unexposed import UnexposedPairs


def plain_labels(
    pairs: UnexposedPairs,
    label: NDArray[Any],
    confidence: NDArray[Any],
    source: str,
    fit: dict[str, Any] | None = None,
) -> PseudoLabels:
    """Return pseudo-labels of ``pairs`` at full lambda.

    Args:
        pairs: N pairs.
        label: (N,) in [0, 1].
        confidence: (N,) >= 0; rescaled to mean 1 over the pairs that do not abstain.
        source: which label source made them.
        fit: what was fitted.
    """
    labelled = confidence > 0
    mean = confidence[labelled].mean(dtype=np.float64) if labelled.any() else 1.0
    nothing = np.full(len(pairs), np.nan, np.float32)
    return PseudoLabels(
        user=pairs.user,
        item=pairs.item,
        time=pairs.time,
        label=np.where(labelled, label, 0).astype(np.float32),
        confidence=(confidence / mean).astype(np.float32),
        relevance=nothing,
        anchor=np.full(len(pairs), -1, np.int64),
        dispersion=nothing,
        history=nothing,
        llm=nothing,
        source=source,
        fit={**(fit or {}), "pseudo_weight_factor": 1.0},
    )
