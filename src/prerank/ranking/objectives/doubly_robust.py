"""Doubly robust joint learning over the entire recalled space (DR).

    L(f) = 1 / |D| sum_D e^  +  sum_{D_e} (e - e^) / p  /  sum_{D_e} 1 / p
    L(g) = sum_{D_e} (e - e^)^2 / p  /  sum_{D_e} 1 / p
    e = BCE(y, f),   e^ = BCE(g, f): the error that an imputation model g expects

f is the pre-ranker, g a second model of the same architecture that is trained beside it and then
thrown away; each loss moves its own model only. Right where g is, or where 1 / p is so up to a
factor and p nowhere 0.

C: the corrections are divided by their own weights (self-normalised, as in SNIPS) and not by |D|.
The source's form needs sum_{D_e} 1 / p = |D|. Logs break that: D_u may be a sample, a pair counts
once however often it was recalled, and a logged p is that of one request, often of its last stage.

Source: Wang et al., "Doubly Robust Joint Learning for Recommendation on Data Missing Not at
Random", ICML 2019 (S); e^ as cross-entropy with an imputed click probability, C. It stands where
the GPL paper compares with UECF, which could not be identified.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Self

from torch import Tensor, nn
from torch.nn import functional

from prerank.ranking.objectives.base import Batch, LossParts, Objective, Setup, twin
from prerank.ranking.objectives.ips import propensities, snips_loss


def dr_losses(
    logit_N: Tensor,
    click_N: Tensor,
    propensity_N: Tensor,
    imputed_N: Tensor,
    unexposed_logit_M: Tensor,
    unexposed_imputed_M: Tensor,
    exposed_share: float,
) -> tuple[Tensor, Tensor]:
    """Return the step's L(f) and L(g), scalars.

    Args:
        logit_N, unexposed_logit_M: f, of exposed and unexposed rows.
        click_N: (N,) 0 or 1.
        propensity_N: (N,) in (0, 1].
        imputed_N, unexposed_imputed_M: logits of g.
        exposed_share: |D_e| / |D|, the weight of exposed rows in the mean of e^.
    """

    def error(logit: Tensor, target: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(logit, target, reduction="none")

    expected_N = error(logit_N, imputed_N.detach().sigmoid())
    expected_M = error(unexposed_logit_M, unexposed_imputed_M.detach().sigmoid())
    missed_N = error(logit_N, click_N) - expected_N
    imputed = exposed_share * expected_N.mean() + (1 - exposed_share) * expected_M.mean()
    fixed_N = logit_N.detach()
    gap_N = error(fixed_N, click_N) - error(fixed_N, imputed_N.sigmoid())
    return (
        imputed + snips_loss(missed_N, propensity_N),
        snips_loss(gap_N.square(), propensity_N),
    )


class DoublyRobust(Objective):
    """The two losses above; lambda has no say."""

    fixed_weight: ClassVar[bool] = True

    def __init__(self, setup: Setup, propensity_N: Tensor, exposed_share: float) -> None:
        self.setup = setup
        self.propensity_N, self.exposed_share = propensity_N, exposed_share
        self.imputation = twin(setup.model).train()

    @classmethod
    def of(cls, setup: Setup) -> Self:
        """Look up or fit the propensities, and start the imputation model."""
        return cls(setup, *propensities(setup, "dr"))

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the imputation model's."""
        return self.imputation.parameters()

    def loss(self, batch: Batch) -> LossParts:
        """Return L(f) as ``al`` and L(g) as ``other``."""
        shown, beside = batch.exposed, batch.unexposed
        imputed, _ = self.setup.outputs(self.imputation, shown.rows.joined(beside.rows))
        of_model, of_imputation = dr_losses(
            shown.logit,
            shown.rows.target,
            self.propensity_N.index_select(0, shown.index),
            imputed[: len(shown)],
            beside.logit,
            imputed[len(shown) :],
            self.exposed_share,
        )
        return LossParts(of_model, other=of_imputation)
