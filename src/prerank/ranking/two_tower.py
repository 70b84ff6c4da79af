"""The two-tower pre-ranker: one vector a user, one vector a candidate, their dot product.

Light enough for thousands of candidates: item vectors are computed ahead, a request costs one
user vector and one matrix product (method.md section 7, S: light and plug-in; the layers are C).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from prerank.ranking.config import TrainConfig
from prerank.ranking.fused import joined, mlp, towers
from prerank.ranking.inputs import Inputs, layers
from prerank.ranking.model import Parts, PreRankerModel
from prerank.ranking.pooling import States


class TwoTower(PreRankerModel):
    """User tower and item tower; logit = dot product, or cosine over temperature, plus bias.

    Args:
        config: sizes and switches.
        inputs: what the towers read.

    Letters: B rows or requests, C candidates, D embedding_dim.
    """

    def __init__(self, config: TrainConfig, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs
        self.user_tower = _tower(sum(inputs.user_widths.values()), config)
        self.item_tower = _tower(sum(inputs.item_widths.values()), config)
        self.cosine = config.similarity == "cosine"
        self.temperature = config.temperature

    def user_parts(self, user_B: Tensor, item_T: Tensor, offsets_B1: Tensor) -> Parts:
        """Return the user vectors, (B, D)."""
        user_BD = self._user(user_B, item_T, offsets_B1)
        if self.cosine:
            user_BD = functional.normalize(user_BD, dim=1) / self.temperature
        return (user_BD,)

    def item_parts(self, item_B: Tensor) -> Parts:
        """Return the item vectors (B, D) and biases (B,)."""
        item_BD, bias_B = self._item(item_B)
        if self.cosine:
            item_BD = functional.normalize(item_BD, dim=1)
        return item_BD, bias_B

    def _user(self, user_B: Tensor, item_T: Tensor, offsets_B1: Tensor) -> Tensor:
        return mlp(self.user_tower, joined(self.inputs.user(user_B, item_T, offsets_B1)))

    def _item(self, item_B: Tensor) -> tuple[Tensor, Tensor]:
        fields, bias_B = self.inputs.item(item_B)
        return mlp(self.item_tower, joined(fields)), bias_B

    def combine(self, user_parts: Parts, item_parts: Parts) -> Tensor:
        """Return (B, C) logits."""
        (user_BD,), (item, bias) = user_parts, item_parts
        if bias.dim() == 1:
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
        """Return (B,) logits of pairs and (B, D), the product of both vectors behind each."""
        item_fields, item_bias = self.inputs.item_fields(item_B)
        user_fields = self.inputs.user_fields(user_S, item_T, offsets_S1)
        return towers(
            self.user_tower,
            self.item_tower,
            user_fields,
            item_fields,
            self.inputs.bias,
            item_bias,
            states=states,
            cosine=self.cosine,
            temperature=self.temperature if self.cosine else 1.0,
        )


def _tower(width: int, config: TrainConfig) -> nn.Sequential:
    hidden, width = layers(width, config)
    return nn.Sequential(*hidden, nn.Linear(width, config.embedding_dim))
