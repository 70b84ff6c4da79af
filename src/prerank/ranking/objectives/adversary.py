"""A domain adversary: hidden vectors that do not tell exposed from unexposed rows.

    L_domain = BCE(exposed?, d(R(h)));   R(h) = h, its gradient times -adversary_weight * r
    r = 2 / (1 + exp(-10 p)) - 1,        p = the steps done, of all that training may take

The discriminator d descends the loss, the model beneath climbs it, so that what it learns from
clicks on D_e carries over to D_u. The weight meets the reversed gradient alone, so d learns at
full speed, and r rises from 0 to 1, so the model is not moved by a d that knows nothing yet.
`Adapted` is the adapted ranker of UKD and SIDA:

    L_al(D_e) + L_domain(D_e, D_u)

Source: Ganin and Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", ICML 2015
(gradient reversal, its weight and r, S); UKD, arXiv 2201.08024: the teacher is adapted so (S;
sizes and weight C).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from prerank.ranking.losses import actual_loss
from prerank.ranking.objectives.base import Batch, LossParts, Objective, Setup

HIDDEN = 32


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * grads[0], None


def reverse_gradient(hidden: Tensor, strength: float) -> Tensor:
    """Return ``hidden`` unchanged; its gradient arrives times ``-strength``."""
    found: Tensor = _Reversal.apply(hidden, strength)  # type: ignore[no-untyped-call]
    return found


def ramp(progress: float) -> float:
    """Return r, from 0 at the start of training (``progress`` 0) to almost 1 at its end (1)."""
    return 2 / (1 + math.exp(-10 * progress)) - 1


class Discriminator(nn.Module):
    """Tells exposed from unexposed hidden vectors, with the gradient to them reversed.

    Args:
        width: D of the hidden vectors.
        weight: of the reversed gradient, once it is at its full strength.
        steps: all that training may take.
    """

    def __init__(self, width: int, weight: float, steps: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        self.weight, self.steps, self.done = weight, steps, 0

    @classmethod
    def of(cls, setup: Setup) -> Self:
        """Make one for the model of a training."""
        config = setup.config
        steps = config.epochs * math.ceil(len(setup.exposed) / config.batch_size)
        made = cls(setup.hidden_width(), config.adversary_weight, steps)
        return made.to(setup.device)

    def domain_loss(self, exposed_ND: Tensor, unexposed_MD: Tensor) -> Tensor:
        """Return the loss of the next step, both domains of equal weight; 0 where one is empty."""
        strength = self.weight * ramp(self.done / self.steps)
        self.done += 1
        if not len(exposed_ND) or not len(unexposed_MD):
            return (exposed_ND.sum() + unexposed_MD.sum()) * 0
        shown = self.layers(reverse_gradient(exposed_ND, strength)).squeeze(1)
        beside = self.layers(reverse_gradient(unexposed_MD, strength)).squeeze(1)
        return (functional.softplus(-shown).mean() + functional.softplus(beside).mean()) / 2


class Adapted(Objective):
    """Clicks on D_e, and hidden vectors alike on D_e and D_u."""

    fixed_weight: ClassVar[bool] = True

    def __init__(self, discriminator: Discriminator) -> None:
        self.discriminator = discriminator

    @classmethod
    def of(cls, setup: Setup) -> Self:
        """Make a discriminator for the model's hidden vectors."""
        setup.unlabeled("adapted")
        return cls(Discriminator.of(setup))

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the discriminator's."""
        return self.discriminator.parameters()

    def loss(self, batch: Batch) -> LossParts:
        """Return L_al and the domain loss."""
        shown = batch.exposed
        loss_al = actual_loss(shown.logit, shown.rows.target)
        domain = self.discriminator.domain_loss(shown.hidden, batch.unexposed.hidden)
        return LossParts(loss_al, other=domain)
