"""DAMCAR: domain adaptation on hard unexposed rows, labeled by a moving copy of the student.

    hard rows   the ``hard_share`` of the step's unexposed rows whose score is nearest to the mean
                exposed click rate: hardest to tell apart
    label       g = the click probability of a moving average of the student, which after step t
                keeps min(ema_decay, t / (t + 1)) of itself: a plain mean until it is old enough,
                so that the untrained student, from which it starts, does not teach for long
    loss        L_al(D_e) + lambda * mean_hard BCE(g, f) + L_domain(D_e, hard)

L_domain and its weight are those of `objectives.adversary`.

Source: Lin et al., "DAMCAR", ACM MM 2024. S (abstract): hard-to-distinguish unexposed samples as
target domain, adversarial adaptation, pseudo-labels under an EMA teacher by self-distillation,
hybrid training. Inferred: all formulas, for the text could not be obtained. The decay that rises
is Mean Teacher's (Tarvainen and Valpola, NeurIPS 2017).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from prerank.ranking.losses import actual_loss
from prerank.ranking.objectives.adversary import Discriminator
from prerank.ranking.objectives.base import Batch, LossParts, Objective, Setup, twin


def hardest(logit_N: Tensor, middle: float, share: float) -> Tensor:
    """Return the (ceil(share N),) rows whose logit is nearest to ``middle``."""
    count = math.ceil(share * len(logit_N))
    return (logit_N - middle).abs().topk(count, largest=False, sorted=False).indices


class Damcar(Objective):
    """Student, moving copy and adversary."""

    fixed_weight: ClassVar[bool] = True

    def __init__(self, setup: Setup, discriminator: Discriminator) -> None:
        self.setup, self.discriminator = setup, discriminator
        self.average = twin(setup.model).eval().requires_grad_(False)
        self.steps = 0
        clicks, shown = float(setup.exposed.target.sum()), len(setup.exposed)
        self.middle = math.log((clicks + 1) / (shown - clicks + 1))

    @classmethod
    def of(cls, setup: Setup) -> Self:
        """Make the moving copy and the discriminator."""
        setup.unlabeled("damcar")
        return cls(setup, Discriminator.of(setup))

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the discriminator's; the copy is not trained, it follows."""
        return self.discriminator.parameters()

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the copy a little towards the student."""
        self.steps += 1
        kept = min(self.setup.config.ema_decay, self.steps / (self.steps + 1))
        pairs = zip(self.average.parameters(), self.setup.model.parameters(), strict=True)
        for average, now in pairs:
            average.lerp_(now, 1 - kept)

    def loss(self, batch: Batch) -> LossParts:
        """Return L_al, the self-distillation on hard rows, and the domain loss."""
        shown, beside, config = batch.exposed, batch.unexposed, self.setup.config
        loss_al = actual_loss(shown.logit, shown.rows.target)
        if not len(beside):
            return LossParts(loss_al)
        with torch.no_grad():
            taught_M, _ = self.setup.outputs(self.average, beside.rows)
        hard = hardest(taught_M, self.middle, config.hard_share)
        loss_pl = actual_loss(beside.logit[hard], taught_M[hard].sigmoid())
        domain = self.discriminator.domain_loss(shown.hidden, beside.hidden[hard])
        return LossParts(loss_al, loss_pl, domain)
