"""A pre-ranker without hidden layers: one linear map a side, then a dot product."""

import torch
from torch import Tensor, nn

from prerank.ranking.config import TrainConfig
from prerank.ranking.context import ScoringContext
from prerank.ranking.inputs import Inputs
from prerank.ranking.model import Parts, PreRankerModel
from prerank.ranking.pooling import States, spread


def build(config: TrainConfig, inputs: Inputs, context: ScoringContext) -> PreRankerModel:
    """Return the untrained model; prerank trains, validates, stores and exports it."""
    return Linear(inputs, int(config.options.get("dimensions", config.embedding_dim)))


class Linear(PreRankerModel):
    """Letters: B rows or requests, C candidates, D dimensions, T items of all histories."""

    def __init__(self, inputs: Inputs, dimensions: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.user = nn.Linear(sum(inputs.user_widths.values()), dimensions)
        self.item = nn.Linear(sum(inputs.item_widths.values()), dimensions)

    def user_parts(self, user_B: Tensor, item_T: Tensor, offsets_B1: Tensor) -> Parts:
        """Return (B, D): computed once a request."""
        return (self.user(torch.cat(self.inputs.user(user_B, item_T, offsets_B1), dim=1)),)

    def item_parts(self, item_B: Tensor) -> Parts:
        """Return (B, D) and the bias (B,): computed once an item, then kept."""
        fields, bias_B = self.inputs.item(item_B)
        return self.item(torch.cat(fields, dim=1)), bias_B

    def combine(self, user_parts: Parts, item_parts: Parts) -> Tensor:
        """Return (B, C) logits: what remains for each candidate."""
        (user_BD,), (item, bias) = user_parts, item_parts
        if bias.dim() == 1:  # all requests have the same candidates: (C, D)
            return user_BD @ item.T + bias
        return (user_BD[:, None] * item).sum(2) + bias

    def outputs(
        self,
        user_S: Tensor,
        item_B: Tensor,
        item_T: Tensor,
        offsets_S1: Tensor,
        states: States | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return (B,) logits of pairs and (B, D), the last hidden vector behind each.

        Rows of one user and history are one of S states: their user's side is computed once.
        """
        (user_SD,) = self.user_parts(user_S, item_T, offsets_S1)
        user_BD, (item_BD, bias_B) = spread(user_SD, states), self.item_parts(item_B)
        hidden_BD = user_BD * item_BD
        return hidden_BD.sum(1) + bias_B, hidden_BD
