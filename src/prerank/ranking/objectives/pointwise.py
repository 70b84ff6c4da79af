"""Clicks and pseudo-labels, row by row (method.md section 1, S): exposed-only, GPL, negatives.

    L_al = mean BCE(y, f);    L_pl = sum w BCE(label, f) / sum w

Without unexposed rows L_pl is 0: the exposed-only baseline.
"""

from __future__ import annotations

from prerank.ranking.losses import actual_loss, pseudo_loss
from prerank.ranking.objectives.base import Batch, LossParts, Objective


class Pointwise(Objective):
    """``L_al(D_e) + lambda * L_pl(D_u)``."""

    def loss(self, batch: Batch) -> LossParts:
        """Return L_al on exposed and L_pl on unexposed rows."""
        shown, hidden = batch.exposed, batch.unexposed
        loss_al = actual_loss(shown.logit, shown.rows.target)
        loss_pl = None
        if len(hidden):
            loss_pl = pseudo_loss(hidden.logit, hidden.rows.target, hidden.rows.weight)
        return LossParts(loss_al, loss_pl)
