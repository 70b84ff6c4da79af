"""A second opinion mixed into the labels (extension, ours): GPL + negatives, GPL + KD.

    sum over pairs of (1 - s) w BCE(label, f) + s BCE(other, f)  /  sum of (1 - s) w + s

s = ``mix_share``, w the pair's confidence; other is 0 (a weak negative: what was not exposed was
probably not worth it) or a ranker's click probability. Cross-entropy is linear in its target, so
this is one term with a blended label and weight. The factor that the labels have earned on held-out
clicks goes into w: without skill nothing but the second opinion is left, and lambda weighs it in
full.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import PseudoLabels


def mixed(labels: PseudoLabels, other: NDArray[Any], share: float, name: str) -> PseudoLabels:
    """Return ``labels`` with ``other`` mixed in.

    Args:
        labels: N pseudo-labels; what abstains takes the second opinion alone.
        other: (N,) labels in [0, 1].
        share: s in (0, 1].
        name: of the second opinion, for the report.
    """
    earned = float(labels.fit.get("pseudo_weight_factor", 1.0))
    own = (1 - share) * earned * labels.confidence.astype(np.float64)
    weight = own + share
    label = (own * labels.label + share * other) / weight
    return replace(
        labels,
        label=np.clip(label, 0, 1).astype(np.float32),
        confidence=(weight / weight.mean()).astype(np.float32),
        source=f"{labels.source}+{name}",
        fit={
            **labels.fit,
            "mix": name,
            "mix_share": share,
            "earned": earned,
            "pseudo_weight_factor": 1.0,
        },
    )
