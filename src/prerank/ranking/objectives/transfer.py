"""Transfer learning (TL): pre-train on the candidate space with ranker scores, fine-tune on clicks.

    first ``pretrain_epochs``   mean_{D_e} BCE(g, f) + lambda * L_pl(D_u) with labels g
    then                        L_al = mean_{D_e} BCE(y, f)

g is the ranker's click probability. The pre-training epochs come before the recipe's own and are
never selected by validation.

Source: a baseline of the paper by name only; the usual reading of it (inferred). C: one epoch.
"""

from __future__ import annotations

from typing import Self

from torch import Tensor

from prerank.ranking.losses import actual_loss, pseudo_loss
from prerank.ranking.objectives.base import Batch, LossParts, Objective, Setup


class Transfer(Objective):
    """Ranker scores first, clicks afterwards."""

    def __init__(self, taught_N: Tensor, epochs: int) -> None:
        self.taught_N, self.warmup_epochs = taught_N, epochs

    @classmethod
    def of(cls, setup: Setup) -> Self:
        """Let the ranker score the exposed rows."""
        setup.unlabeled("transfer")
        return cls(setup.taught("transfer"), setup.config.pretrain_epochs)

    def draws(self, epoch: int) -> bool:
        """Draw unexposed rows while pre-training only."""
        return epoch < self.warmup_epochs

    def loss(self, batch: Batch) -> LossParts:
        """Return the loss of the epoch's phase."""
        shown, beside = batch.exposed, batch.unexposed
        if batch.epoch >= self.warmup_epochs:
            loss_al = actual_loss(shown.logit, shown.rows.target)
            return LossParts(loss_al)
        loss_al = actual_loss(shown.logit, self.taught_N.index_select(0, shown.index))
        loss_pl = None
        if len(beside):
            loss_pl = pseudo_loss(beside.logit, beside.rows.target, beside.rows.weight)
        return LossParts(loss_al, loss_pl)
