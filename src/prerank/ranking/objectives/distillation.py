"""Knowledge distillation from a ranker: its click probability g as soft target.

    L_al = mean [ (1 - a) BCE(y, f) + a BCE(g, f) ]      on exposed rows
    L_pl = sum w BCE(g, f) / sum w                        on unexposed rows, where they are labeled

a is ``distillation_weight``. KD-exposed has L_al alone; KD-all labels D_u with g as well
(`prerank.labels.teacher`). SIDA is the same loss with another teacher and a selection of D_u.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, at
temperature 1 (S); as a pre-ranking baseline: method.md's table 4. C: a.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from prerank.ranking.losses import actual_loss, pseudo_loss
from prerank.ranking.objectives.base import Batch, LossParts, Objective, Setup


def blended_loss(logit_N: Tensor, click_N: Tensor, taught_N: Tensor, weight: float) -> Tensor:
    """Return the mean of (1 - weight) BCE(click) + weight BCE(taught), all (N,).

    Cross-entropy is linear in its target, so both terms are one with the blended target.
    """
    return actual_loss(logit_N, torch.lerp(click_N, taught_N, weight))


class Distillation(Objective):
    """Clicks and the teacher's scores on D_e, pseudo-labels on D_u."""

    def __init__(self, taught_N: Tensor, weight: float) -> None:
        self.taught_N, self.weight = taught_N, weight

    @classmethod
    def of(cls, setup: Setup) -> Self:
        """Let the teacher score the exposed rows."""
        return cls(setup.taught("distillation"), setup.config.distillation_weight)

    def loss(self, batch: Batch) -> LossParts:
        """Return both parts."""
        shown, beside = batch.exposed, batch.unexposed
        taught_N = self.taught_N.index_select(0, shown.index)
        loss_al = blended_loss(shown.logit, shown.rows.target, taught_N, self.weight)
        loss_pl = None
        if len(beside):
            loss_pl = pseudo_loss(beside.logit, beside.rows.target, beside.rows.weight)
        return LossParts(loss_al, loss_pl)
