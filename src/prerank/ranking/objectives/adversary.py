"""A domain adversary: hidden vectors that do not tell exposed from unexposed rows.

    L_domain = BCE(exposed?, d(R(h)));   R(h) = h, its gradient reversed

The discriminator d descends the loss, the model beneath climbs it, so that what it learns from
clicks on D_e carries over to D_u. `Adapted` is the adapted ranker of UKD and SIDA:

    L_al(D_e) + adversary_weight * L_domain(D_e, D_u)

Source: Ganin and Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", ICML 2015
(gradient reversal, S); UKD, arXiv 2201.08024: the teacher is adapted so (S; sizes and weight C).
"""

from __future__ import annotations

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
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -grads[0]


def reverse_gradient(hidden: Tensor) -> Tensor:
    """Return ``hidden`` unchanged; its gradient arrives with the sign turned."""
    found: Tensor = _Reversal.apply(hidden)  # type: ignore[no-untyped-call]
    return found


class Discriminator(nn.Module):
    """Tells exposed from unexposed hidden vectors, with the gradient to them reversed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))

    def domain_loss(self, exposed_ND: Tensor, unexposed_MD: Tensor) -> Tensor:
        """Return the discriminator's loss, both domains of equal weight; 0 where one is empty."""
        if not len(exposed_ND) or not len(unexposed_MD):
            return (exposed_ND.sum() + unexposed_MD.sum()) * 0
        shown = self.layers(reverse_gradient(exposed_ND)).squeeze(1)
        beside = self.layers(reverse_gradient(unexposed_MD)).squeeze(1)
        return (functional.softplus(-shown).mean() + functional.softplus(beside).mean()) / 2


class Adapted(Objective):
    """Clicks on D_e, and hidden vectors alike on D_e and D_u."""

    fixed_weight: ClassVar[bool] = True

    def __init__(self, discriminator: Discriminator, weight: float) -> None:
        self.discriminator, self.weight = discriminator, weight

    @classmethod
    def of(cls, setup: Setup) -> Self:
        """Make a discriminator for the model's hidden vectors."""
        setup.unlabeled("adapted")
        width = setup.hidden_width()
        return cls(Discriminator(width).to(setup.device), setup.config.adversary_weight)

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the discriminator's."""
        return self.discriminator.parameters()

    def loss(self, batch: Batch) -> LossParts:
        """Return L_al and the weighted domain loss."""
        shown = batch.exposed
        loss_al = actual_loss(shown.logit, shown.rows.target)
        domain = self.discriminator.domain_loss(shown.hidden, batch.unexposed.hidden)
        return LossParts(loss_al, torch.zeros_like(loss_al), self.weight * domain)
