"""A ranker with target attention over the history (DIN): the teacher of the baselines that distil.

Every candidate asks the history anew, so nothing of the interest can be computed ahead. That is
what a ranking stage affords and a pre-ranker does not: for comparison, not to be served.

    a_t = softmax_t MLP[h_t, v, h_t - v, h_t * v],   interest = sum_t a_t h_t
    logit = MLP[user fields, item fields, interest, interest * v] + bias of the item

v and h_t are the same map of the candidate and of a history item: content projected, plus its id
embedding. Source: Zhou et al., "Deep Interest Network", arXiv 1706.06978 (S: the attention unit and
what it reads). C: softmax over the history, which the paper leaves out, and all sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from prerank.ranking.config import TrainConfig
from prerank.ranking.fused import gathered
from prerank.ranking.inputs import Inputs, layers
from prerank.ranking.model import Parts, PreRankerModel
from prerank.ranking.pooling import States, spread

ATTENTION_WIDTH = 16
BLOCK_FLOATS = 1 << 23  # numbers of one attention input at once while scoring: 32 MB


class TargetAttention(PreRankerModel):
    """Attention from the candidate to the history, then layers over all fields.

    Args:
        config: sizes and switches.
        inputs: what it reads; history and content or item ids must be on to attend to anything.

    Letters: A attention width, B rows or requests, C candidates, D embedding_dim, H longest
    history of the rows, T history items end to end, W width of all fields of a side.
    """

    def __init__(self, config: TrainConfig, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs
        dim = config.embedding_dim
        content_dim = inputs.content.shape[1]
        self.key = nn.Linear(content_dim, dim) if content_dim else None
        self.dim = dim
        self.of_history = nn.Linear(dim, ATTENTION_WIDTH)
        self.of_candidate = nn.Linear(dim, ATTENTION_WIDTH, bias=False)
        self.of_both = nn.Linear(dim, ATTENTION_WIDTH, bias=False)
        self.attention = nn.Linear(ATTENTION_WIDTH, 1)
        width = sum(inputs.user_widths.values()) + sum(inputs.item_widths.values()) + 2 * dim
        hidden, width = layers(width, config)
        self.layers = nn.Sequential(*hidden)
        self.logit = nn.Linear(width, 1)

    def _vectors(self, item_N: Tensor) -> Tensor:
        """Return (N, D): what attention compares of each item."""
        vector_ND = torch.zeros(len(item_N), self.dim, device=item_N.device)
        if self.key is not None:
            vector_ND = vector_ND + self.key(self.inputs.content.index_select(0, item_N))
        if self.inputs.item_id is not None:
            vector_ND = vector_ND + gathered(self.inputs.item_id(item_N)[0])
        return vector_ND

    def user_parts(self, user_B: Tensor, item_T: Tensor, offsets_B1: Tensor) -> Parts:
        """Return the user's fields (B, W), history vectors (B, H, D) and which are there (B, H)."""
        user_BW = torch.cat(self.inputs.user(user_B, item_T, offsets_B1), dim=1)
        length_B = offsets_B1.diff()
        longest = int(length_B.max()) if len(item_T) else 1
        column_H = torch.arange(longest, device=user_B.device)
        inside_BH = column_H < length_B[:, None]
        distinct, place_T = torch.unique(item_T.long(), return_inverse=True)
        history_BHD = user_BW.new_zeros(*inside_BH.shape, self.dim)
        history_BHD[inside_BH] = self._vectors(distinct).index_select(0, place_T)
        return user_BW, history_BHD, inside_BH

    def item_parts(self, item_B: Tensor) -> Parts:
        """Return the item's fields (B, W), its vector (B, D) and its bias (B,)."""
        fields, bias_B = self.inputs.item(item_B)
        return torch.cat(fields, dim=1), self._vectors(item_B), bias_B

    def _interest(self, history_BHD: Tensor, inside_BH: Tensor, vector_BCD: Tensor) -> Tensor:
        """Return (B, C, D): the history as each candidate sees it; zeros for an empty one."""
        # A layer over [h, v, h - v, h * v] is one over [h, v, h * v], split by what it reads; what
        # multiplies h is one matrix a candidate, so no product of every step is ever stored.
        by_step_BCDA = self.of_history.weight.T + self.of_both.weight.T * vector_BCD[..., None]
        fixed_BCA = self.of_candidate(vector_BCD) + self.of_history.bias
        layer_BCHA = history_BHD[:, None] @ by_step_BCDA + fixed_BCA[:, :, None]
        weight_BCH = self.attention(functional.relu(layer_BCHA)).squeeze(3)
        # The least number instead of -inf: an empty history must not give NaN.
        lowest = torch.finfo(weight_BCH.dtype).min
        weight_BCH = weight_BCH.masked_fill(~inside_BH[:, None], lowest).softmax(2)
        weight_BCH = weight_BCH * inside_BH[:, None]
        interest_BCD: Tensor = weight_BCH @ history_BHD
        return interest_BCD

    def _hidden(self, user_parts: Parts, item_parts: Parts) -> Tensor:
        """Return the last hidden layer, (B, C, width)."""
        (user_BW, history_BHD, inside_BH), (item_BCW, vector_BCD) = user_parts, item_parts
        interest_BCD = self._interest(history_BHD, inside_BH, vector_BCD)
        users = user_BW[:, None].expand(-1, item_BCW.shape[1], -1)
        read = [users, item_BCW, interest_BCD, interest_BCD * vector_BCD]
        hidden: Tensor = self.layers(torch.cat(read, dim=2))
        return hidden

    def combine(self, user_parts: Parts, item_parts: Parts) -> Tensor:
        """Return (B, C) logits, some candidates at a time."""
        n_users = len(user_parts[0])
        if item_parts[-1].dim() == 1:
            item_parts = tuple(part.expand(n_users, *part.shape) for part in item_parts)
        *fields, bias_BC = item_parts
        step = max(1, BLOCK_FLOATS // max(1, user_parts[1].numel()))
        blocks = [
            self.logit(self._hidden(user_parts, tuple(f[:, start : start + step] for f in fields)))
            for start in range(0, bias_BC.shape[1], step)
        ]
        return torch.cat(blocks, dim=1).squeeze(2) + bias_BC

    def outputs(
        self,
        user_S: Tensor,
        item_B: Tensor,
        item_T: Tensor,
        offsets_S1: Tensor,
        states: States | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return (B,) logits of pairs and (B, width), the last hidden layer."""
        parts = self.user_parts(user_S, item_T, offsets_S1)
        users = tuple(spread(part, states) for part in parts)
        *fields, bias_B = self.item_parts(item_B)
        hidden_BW = self._hidden(users, tuple(part[:, None] for part in fields))[:, 0]
        return self.logit(hidden_BW).squeeze(1) + bias_B, hidden_BW
