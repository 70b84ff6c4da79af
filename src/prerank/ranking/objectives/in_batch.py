"""In-batch negatives with logQ correction: every clicked item against the others of the step.

    L_ib = mean_i [ logsumexp_j s'(u_i, j) - s'(u_i, i) ],   s'(u, j) = f(u, j) - log q_j

over the clicked pairs (u_i, i) of the step; q_j is the item's share of all training clicks, the
chance to be in the batch. Without the correction popular items would be negatives too often.
The same item, and other clicks of the same user, are no negatives.

Source: Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
Recommendations", RecSys 2019, doi 10.1145/3298689.3346996, its batch softmax and correction (S).
C: q from counts of the log instead of a streaming estimate; added with ``in_batch_weight`` to the
objective's loss, so that exposed items without a click still count; at most `MOST` clicked pairs a
step. Beside L_al alone it is the baseline `in-batch-logq`; beside pseudo-labels an extension, ours.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from prerank.errors import ConfigError
from prerank.group import Group
from prerank.ranking.objectives.base import Part, Setup

MOST = 512


def corrected_softmax(logit_PP: Tensor, log_q_P: Tensor, user_P: Tensor, item_P: Tensor) -> Tensor:
    """Return the mean batch softmax loss, 0 for no pair.

    Args:
        logit_PP: (P, P) logit of the user of row i and the item of row j.
        log_q_P: (P,) log chance of each row's item to be in the batch.
        user_P, item_P: (P,) int64, the clicked pairs.
    """
    if not len(item_P):
        return logit_PP.sum()
    same = (item_P[:, None] == item_P) | (user_P[:, None] == user_P)
    same.fill_diagonal_(False)
    corrected_PP = (logit_PP - log_q_P).masked_fill(same, -torch.inf)
    return functional.cross_entropy(corrected_PP, torch.arange(len(item_P), device=item_P.device))


class BatchSoftmax:
    """The batch softmax over a step's clicks, to be added to what the objective minimises."""

    def __init__(self, setup: Setup, log_q_I: Tensor) -> None:
        self.setup, self.log_q_I = setup, log_q_I

    @classmethod
    def of(cls, setup: Setup) -> Self:
        """Count the clicks of each item; an item without one is never drawn.

        Raises:
            ConfigError: several processes share a step.
        """
        if Group.current().size > 1:
            raise ConfigError(
                "the batch softmax compares all rows of a step",
                where="train.in_batch_weight",
                must="0 where several processes share a step",
                got=setup.config.in_batch_weight,
            )
        clicked = setup.exposed.item[setup.exposed.target == 1]
        count_I = torch.bincount(clicked, minlength=len(setup.dataset.items) + 1)
        return cls(setup, (count_I / max(len(clicked), 1)).log().to(setup.device))

    def loss(self, shown: Part) -> Tensor:
        """Return the loss, a scalar, of the exposed rows of a step."""
        rows = shown.rows.take((shown.rows.target == 1).nonzero().squeeze(1)[:MOST])
        if not len(rows):
            return shown.logit.sum() * 0  # not every model can run on no rows at all
        logit_PP = self.setup.cross_logits(rows)
        return corrected_softmax(logit_PP, self.log_q_I[rows.item], rows.user, rows.item)
