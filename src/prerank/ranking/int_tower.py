"""IntTower: two towers whose layers meet early (arXiv 2210.09890).

S: every layer of the user tower meets the item tower's last layer in several subspaces, and the
best match of each counts (the paper's fine-grained and early interaction); items stay cacheable.
Inferred, as only a summary of the paper was at hand: the projections, sum over layers and heads.
Left out: its light SE block and the contrastive regulariser, which is an objective of its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from prerank.ranking.config import TrainConfig
from prerank.ranking.fused import joined, mlp
from prerank.ranking.inputs import Inputs, layers
from prerank.ranking.model import Parts, PreRankerModel
from prerank.ranking.pooling import States, spread


class IntTower(PreRankerModel):
    """Logit = sum over user layers and heads of the best match with the item's heads, plus bias.

    Args:
        config: sizes and switches.
        inputs: what the towers read.

    Letters: B rows or requests, C candidates, H heads, D dims of a head, Q user layers x heads.
    """

    def __init__(self, config: TrainConfig, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs
        self.n_heads = config.n_heads
        self.head_dim = math.ceil(config.embedding_dim / config.n_heads)
        width = sum(inputs.user_widths.values())
        # The input fields count as a layer: interaction begins before any tower.
        sizes = [width, *config.hidden]
        flat = self.n_heads * self.head_dim
        self.user_layers = nn.ModuleList(
            nn.Sequential(nn.Linear(m, n), nn.ReLU(), nn.Dropout(config.dropout))
            for m, n in zip(sizes, config.hidden, strict=False)
        )
        self.user_heads = nn.ModuleList(nn.Linear(size, flat) for size in sizes)
        hidden, width = layers(sum(inputs.item_widths.values()), config)
        self.item_tower = nn.Sequential(*hidden, nn.Linear(width, flat))

    def user_parts(self, user_B: Tensor, item_T: Tensor, offsets_B1: Tensor) -> Parts:
        """Return the heads of all user layers, (B, Q, D)."""
        layer_BN = joined(self.inputs.user(user_B, item_T, offsets_B1))
        heads = [self.user_heads[0](layer_BN)]
        for layer, project in zip(self.user_layers, list(self.user_heads)[1:], strict=True):
            layer_BN = layer(layer_BN)
            heads.append(project(layer_BN))
        n_queries = len(heads) * self.n_heads
        return (torch.cat(heads, dim=1).view(-1, n_queries, self.head_dim),)

    def item_parts(self, item_B: Tensor) -> Parts:
        """Return the item's heads (B, H, D) and biases (B,)."""
        fields, bias_B = self.inputs.item(item_B)
        heads = mlp(self.item_tower, joined(fields))
        return heads.view(-1, self.n_heads, self.head_dim), bias_B

    def combine(self, user_parts: Parts, item_parts: Parts) -> Tensor:
        """Return (B, C) logits."""
        (user_BQD,), (item, bias) = user_parts, item_parts
        if bias.dim() == 1:
            match_NBQ = item.flatten(0, 1) @ user_BQD.flatten(0, 1).T
            n_queries = user_BQD.shape[1]
            match_CHBQ = match_NBQ.view(-1, self.n_heads, user_BQD.shape[0], n_queries)
            return match_CHBQ.amax(1).sum(2).T + bias
        match_BNQ = item.flatten(1, 2) @ user_BQD.transpose(1, 2)
        match_BCHQ = match_BNQ.view(match_BNQ.shape[0], -1, self.n_heads, match_BNQ.shape[2])
        return match_BCHQ.amax(2).sum(2) + bias

    def outputs(
        self,
        user_S: Tensor,
        item_B: Tensor,
        item_T: Tensor,
        offsets_S1: Tensor,
        states: States | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return (B,) logits and (B, Q), the best match of each user head."""
        item_BHD, bias_B = self.item_parts(item_B)
        (user_SQD,) = self.user_parts(user_S, item_T, offsets_S1)
        user_BQD = spread(user_SQD, states)
        best_BQ = (item_BHD @ user_BQD.transpose(1, 2)).amax(1)
        return best_BQ.sum(1) + bias_B, best_BQ
