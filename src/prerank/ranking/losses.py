"""The joint objective (method.md section 1, S): ``L_al(D_e) + lambda * L_pl(D_u)``.

All take logits, so that sigmoid and logarithm are computed together without overflow.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def actual_loss(logit_N: Tensor, click_N: Tensor) -> Tensor:
    """Return L_al, the mean binary cross-entropy on exposed rows.

    Args:
        logit_N: (N,) float.
        click_N: (N,) float, 0 or 1.
    """
    return functional.binary_cross_entropy_with_logits(logit_N, click_N)


def pseudo_loss(logit_N: Tensor, label_N: Tensor, confidence_N: Tensor) -> Tensor:
    """Return L_pl, the confidence-weighted mean cross-entropy on unexposed rows.

    ``sum w BCE(label, logit) / sum w``; 0 where every row abstains.

    Args:
        logit_N: (N,) float.
        label_N: (N,) float in [0, 1].
        confidence_N: (N,) float >= 0; 0 = abstain.
    """
    each_N = functional.binary_cross_entropy_with_logits(logit_N, label_N, reduction="none")
    total = confidence_N.sum().clamp_min(torch.finfo(confidence_N.dtype).tiny)
    return (confidence_N * each_N).sum() / total
