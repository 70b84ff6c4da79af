"""The three-tower pre-ranker: user tower, item tower, and a tiny tower over cross fields.

The user tower runs once a request, item vectors are cached, and only the cross tower, some tens
of weights, runs for each candidate. The idea is known from industry talks; the layers are C.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prerank.errors import ConfigError
from prerank.ranking.config import TrainConfig
from prerank.ranking.cross import CrossFields
from prerank.ranking.inputs import Inputs
from prerank.ranking.model import Parts, batched
from prerank.ranking.pooling import States
from prerank.ranking.two_tower import TwoTower


class ThreeTower(TwoTower):
    """Logit = that of the two towers + cross tower.

    Args:
        config: sizes and switches.
        inputs: what the two towers read.
        cross: what the third reads.

    Letters: B rows or requests, C candidates, D embedding_dim, X cross fields.
    """

    def __init__(self, config: TrainConfig, inputs: Inputs, cross: CrossFields) -> None:
        super().__init__(config, inputs)
        need_fields(cross, "three-tower")
        self.cross = cross
        self.cross_hidden = nn.Sequential(
            nn.Linear(len(cross.names), config.cross_hidden), nn.ReLU()
        )
        self.cross_out = nn.Linear(config.cross_hidden, 1, bias=False)

    def user_parts(self, user_B: Tensor, item_T: Tensor, offsets_B1: Tensor) -> Parts:
        """Return the user vectors, (B, D), and the user's side of the cross fields."""
        user = super().user_parts(user_B, item_T, offsets_B1)
        return *user, *self.cross.user_parts(item_T, offsets_B1)

    def item_parts(self, item_B: Tensor) -> Parts:
        """Return item vectors (B, D), the item's side of the cross fields, biases (B,)."""
        item_BD, bias_B = super().item_parts(item_B)
        return item_BD, *self.cross.item_parts(item_B), bias_B

    def combine(self, user_parts: Parts, item_parts: Parts) -> Tensor:
        """Return (B, C) logits."""
        logits_BC = super().combine(user_parts[:1], (item_parts[0], item_parts[-1]))
        fields_BCX = self.cross.combine(user_parts[1:], batched(item_parts)[1:-1])
        crossed_BC1: Tensor = self.cross_out(self.cross_hidden(fields_BCX))
        return logits_BC + crossed_BC1.squeeze(2)

    def outputs(
        self,
        user_S: Tensor,
        item_B: Tensor,
        item_T: Tensor,
        offsets_S1: Tensor,
        states: States | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return (B,) logits and (B, D + hidden): product of the vectors, cross tower's layer."""
        met_B, met_BD = super().outputs(user_S, item_B, item_T, offsets_S1, states)
        crossed_BH = self.cross_hidden(self.cross.pairs(item_B, item_T, offsets_S1, states))
        logit_B = met_B + self.cross_out(crossed_BH).squeeze(1)
        return logit_B, torch.cat([met_BD, crossed_BH], dim=1)


def need_fields(cross: CrossFields, model: str) -> None:
    """Raise ConfigError where there is no cross field at all."""
    if not cross.names:
        raise ConfigError(
            f"the model `{model}` has no cross field to read",
            where="train.model",
            must="a history, and items with content or categories",
            hint="turn on use_history and use_content, or take `two-tower`",
        )
