"""UKD: uncertainty-regularised distillation from an adversarially adapted teacher.

    L_pl = mean_{D_u} [ exp(-V) (BCE(g, f1) + BCE(g, f2)) / 2 + V ],   V = KL(f1 || f2)
    L_al = mean_{D_e} (BCE(y, f1) + BCE(y, f2)) / 2

g is the adapted teacher's click probability (`objectives.adversary.Adapted`). Where two heads of
the student disagree, the pseudo-label counts less. The first head is the pre-ranker. The second
reads the same hidden vector h through dropout and is thrown away:

    logit of f2 = logit of f1 + linear(dropout(h))

so that it has the item's bias and the click rate that the first one has. A second head without
them disagrees most on what popularity explains, and V then takes that out of the first.

Source: Xu et al., "UKD: Debiasing Conversion Rate Estimation via Uncertainty-regularized
Knowledge Distillation", WWW 2022, arXiv 2201.08024 (S: adapted teacher, two heads on one hidden
vector, each behind its own dropout, weight exp(-KL), the added V, KL from first to second head).
C: its factor within exp is 1; no dropout before the first head, for its last layer is a dot
product that is served as it is; the rate. Inferred: the mean over both heads.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from prerank.ranking.losses import actual_loss
from prerank.ranking.objectives.base import Batch, LossParts, Objective, Part, Setup

DROPOUT = 0.5


def bernoulli_kl(first_N: Tensor, second_N: Tensor) -> Tensor:
    """Return KL(first || second) of click probabilities given as logits, (N,) >= 0."""
    p_N = first_N.sigmoid()
    log_odds = functional.logsigmoid(-first_N) - functional.logsigmoid(-second_N)
    return log_odds + p_N * (first_N - second_N)


def uncertain_loss(
    first_N: Tensor, second_N: Tensor, label_N: Tensor, confidence_N: Tensor
) -> Tensor:
    """Return L_pl of both heads' logits; rows weigh by their confidence, as ever."""
    apart_N = bernoulli_kl(first_N, second_N)
    each_N = sum(
        functional.binary_cross_entropy_with_logits(logit_N, label_N, reduction="none")
        for logit_N in (first_N, second_N)
    )
    total = confidence_N.sum().clamp_min(torch.finfo(confidence_N.dtype).tiny)
    return (confidence_N * ((-apart_N).exp() * each_N / 2 + apart_N)).sum() / total


class Ukd(Objective):
    """A second head beside the pre-ranker's own."""

    def __init__(self, head: nn.Linear) -> None:
        self.head = head

    @classmethod
    def of(cls, setup: Setup) -> Self:
        """Make the second head."""
        setup.unlabeled("ukd")
        return cls(nn.Linear(setup.hidden_width(), 1).to(setup.device))

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the second head's."""
        return self.head.parameters()

    def second(self, part: Part) -> Tensor:
        """Return the second head's logits, (N,)."""
        moved_N: Tensor = self.head(functional.dropout(part.hidden, DROPOUT)).squeeze(1)
        return part.logit + moved_N

    def loss(self, batch: Batch) -> LossParts:
        """Return both parts."""
        shown, beside = batch.exposed, batch.unexposed
        second_N = self.second(shown)
        loss_al = actual_loss(shown.logit, shown.rows.target) / 2
        loss_al = loss_al + actual_loss(second_N, shown.rows.target) / 2
        loss_pl = None
        if len(beside):
            second_M, rows = self.second(beside), beside.rows
            loss_pl = uncertain_loss(beside.logit, second_M, rows.target, rows.weight)
        return LossParts(loss_al, loss_pl)
