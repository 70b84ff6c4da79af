"""Inverse propensity scoring over the entire recalled space, plain and self-normalised.

    IPS     1 / |D| sum_{D_e} BCE(y, f) / p          |D| = |D_e| + |D_u|
    SNIPS   sum BCE(y, f) / p  /  sum 1 / p          over the exposed rows of a step

p is the propensity of exposure (`objectives.propensity`), clipped below by
``propensity_floor``. IPS is unbiased where p is true, nowhere 0, and of the pairs that D holds;
where D_u is a sample or p that of one request, it is so up to a factor. SNIPS trades a small bias
for less variance and no factor.

Source: Schnabel et al., "Recommendations as Treatments", ICML 2016 (IPS); Swaminathan and
Joachims, "The Self-Normalized Estimator for Counterfactual Learning", NeurIPS 2015 (SNIPS), both S.
C: the propensity model and the floor.
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from prerank.ranking.objectives.base import Batch, LossParts, Objective, Setup
from prerank.ranking.objectives.propensity import Recalled, exposure_propensity


def ips_loss(error_N: Tensor, propensity_N: Tensor, exposed_share: float) -> Tensor:
    """Return the step's estimate of the mean error over all recalled pairs.

    Args:
        error_N: (N,) loss of exposed rows.
        propensity_N: (N,) in (0, 1].
        exposed_share: |D_e| / |D|.
    """
    return exposed_share * (error_N / propensity_N).mean()


def snips_loss(error_N: Tensor, propensity_N: Tensor) -> Tensor:
    """Return the mean of ``error_N`` (N,) over exposed rows, each weighted by 1 / propensity."""
    return (error_N / propensity_N).sum() / (1 / propensity_N).sum()


def propensities(setup: Setup, objective: str) -> tuple[Tensor, float]:
    """Return the propensity of each exposed row, (N,) float32, and |D_e| / |D| of pairs."""
    recalled = Recalled.of(setup.dataset, setup.unlabeled(objective))
    found = exposure_propensity(
        setup.dataset,
        setup.exposure_rows(),
        recalled,
        setup.config.propensity_floor,
        setup.seed,
    )
    return torch.from_numpy(found).to(setup.device), recalled.exposed_share


class Ips(Objective):
    """Exposed rows only, each weighted by its inverse propensity."""

    reads_unexposed: ClassVar[bool] = False
    name: ClassVar[str] = "ips"

    def __init__(self, propensity_N: Tensor, exposed_share: float) -> None:
        self.propensity_N, self.exposed_share = propensity_N, exposed_share

    @classmethod
    def of(cls, setup: Setup) -> Self:
        """Look up or fit the propensities."""
        return cls(*propensities(setup, cls.name))

    def loss(self, batch: Batch) -> LossParts:
        """Return the weighted loss of exposed rows; lambda has nothing to weigh."""
        shown = batch.exposed
        error_N = functional.binary_cross_entropy_with_logits(
            shown.logit, shown.rows.target, reduction="none"
        )
        loss = self._weighted(error_N, self.propensity_N.index_select(0, shown.index))
        return LossParts(loss)

    def _weighted(self, error_N: Tensor, propensity_N: Tensor) -> Tensor:
        return ips_loss(error_N, propensity_N, self.exposed_share)


class Snips(Ips):
    """The same, normalised by the step's own weights."""

    name: ClassVar[str] = "snips"

    def _weighted(self, error_N: Tensor, propensity_N: Tensor) -> Tensor:
        return snips_loss(error_N, propensity_N)
