"""COLD: one small MLP over user, item and cross fields (arXiv 2007.16122).

S: a squeeze-and-excitation block weighs each field, ``s = sigmoid(W [e_1 ... e_F] + b)``,
``v_f = s_f e_f``; the weights are the fields' importance, and the most important ones are kept
for a light network. C: the fields, and how the arithmetic is cut: the gates' and the first
layer's share of the user is computed once a request.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prerank.errors import ConfigError
from prerank.ranking.config import TrainConfig
from prerank.ranking.cross import CrossFields
from prerank.ranking.inputs import Inputs
from prerank.ranking.model import Parts, PreRankerModel, batched
from prerank.ranking.pooling import States, spread

SIDES = ("user", "item", "cross")
FIRST_LAYER = 16  # its width where the recipe has no hidden layers


class _BySide(nn.Module):
    """One linear layer over all fields, its columns cut by side; one bias for all."""

    def __init__(self, sizes: dict[str, list[int]], width: int) -> None:
        super().__init__()
        self.user, self.item, self.cross = (
            _linear(sum(sizes[side]), width, bias=side == "user") for side in SIDES
        )


def _linear(size: int, width: int, *, bias: bool) -> nn.Linear:
    layer = nn.Linear(max(size, 1), width, bias=bias)
    if size == 0:  # torch warns of a layer that reads nothing
        layer.weight = nn.Parameter(torch.zeros(width, 0))
    return layer


class Cold(PreRankerModel):
    """Gated fields of user, item and both -> small MLP -> logit.

    Args:
        config: sizes and switches; ``kept_features`` names the fields to read.
        inputs: the fields of users and items.
        cross: the fields of pairs.

    Attributes:
        names: of the fields in the order of the gates: user's, item's, cross.

    Letters: B rows or requests, C candidates, F fields, G user fields, X cross fields, W columns
    of the item's fields, N width of the first layer.
    """

    user_field: Tensor
    item_field: Tensor
    item_spread: Tensor

    def __init__(self, config: TrainConfig, inputs: Inputs, cross: CrossFields) -> None:
        super().__init__()
        self.inputs, self.cross = inputs, cross
        fields = {
            "user": inputs.user_widths,
            "item": inputs.item_widths,
            "cross": dict.fromkeys(cross.names, 1),
        }
        every = [f"{side}:{name}" for side, widths in fields.items() for name in widths]
        kept = set(config.kept_features or every)
        if not kept <= set(every):
            raise ConfigError(
                "a field to keep is not there",
                where="train.kept_features",
                must=", ".join(every),
                got=", ".join(sorted(kept - set(every))),
            )
        self.names = tuple(name for name in every if name in kept)
        self._kept = {
            side: [f"{side}:{name}" in kept for name in widths] for side, widths in fields.items()
        }
        sizes = {
            side: [w for name, w in widths.items() if f"{side}:{name}" in kept]
            for side, widths in fields.items()
        }
        self.user_sizes, self.item_sizes = sizes["user"], sizes["item"]
        n_fields, n_hidden = len(self.names), config.hidden[0] if config.hidden else FIRST_LAYER
        self.gates = _BySide(sizes, n_fields)
        self.first = _BySide(sizes, n_hidden)
        rest: list[nn.Module] = [nn.ReLU(), nn.Dropout(config.dropout)]
        for size in config.hidden[1:]:
            rest += [nn.Linear(n_hidden, size), nn.ReLU(), nn.Dropout(config.dropout)]
            n_hidden = size
        self.rest = nn.Sequential(*rest)
        self.out = nn.Linear(n_hidden, 1, bias=False)
        for side in SIDES[:2]:
            columns = torch.tensor(sizes[side], dtype=torch.int64)
            field = torch.arange(len(columns)).repeat_interleave(columns)
            self.register_buffer(f"{side}_field", field, persistent=False)
        n_columns = len(self.item_field)
        spread_FW = torch.zeros(len(self.item_sizes), n_columns)
        spread_FW[self.item_field, torch.arange(n_columns)] = 1
        self.register_buffer("item_spread", spread_FW, persistent=False)

    def _read(self, side: str, fields: list[Tensor]) -> Tensor:
        kept = [field for field, on in zip(fields, self._kept[side], strict=True) if on]
        return torch.cat(kept, dim=1) if kept else fields[0][:, :0]

    def user_parts(self, user_B: Tensor, item_T: Tensor, offsets_B1: Tensor) -> Parts:
        """Return gate sums (B, F), each field's share of the first layer (B, G, N), cross parts."""
        user_BV = self._read("user", self.inputs.user(user_B, item_T, offsets_B1))
        shares, weight_NV, start = [], self.first.user.weight, 0
        for size in self.user_sizes:
            part = slice(start, start + size)
            shares.append(user_BV[:, part] @ weight_NV[:, part].T)
            start += size
        share_BGN = (
            torch.stack(shares, dim=1)
            if shares
            else user_BV.new_zeros(user_BV.shape[0], 0, weight_NV.shape[0])
        )
        return self.gates.user(user_BV), share_BGN, *self.cross.user_parts(item_T, offsets_B1)

    def item_parts(self, item_B: Tensor) -> Parts:
        """Return gate sums (B, F), fields (B, W), cross parts and biases (B,)."""
        fields, bias_B = self.inputs.item(item_B)
        item_BW = self._read("item", fields)
        return self.gates.item(item_BW), item_BW, *self.cross.item_parts(item_B), bias_B

    def combine(self, user_parts: Parts, item_parts: Parts) -> Tensor:
        """Return (B, C) logits."""
        user_gate_BF, share_BGN, *user_cross = user_parts
        item_gate, item_fields, *item_cross, bias = batched(item_parts)
        n_users, n_candidates = share_BGN.shape[0], item_gate.shape[1]
        cross_BCX = item_gate.new_zeros(n_users, n_candidates, 0)
        if self.cross.names:
            crossed = self.cross.combine(tuple(user_cross), tuple(item_cross))
            cross_BCX = self._kept_cross(crossed)
        # What a request adds to every candidate is the weight of a column of ones: to add it to a
        # large matrix would cost as much as a product.
        one_BC1 = item_gate.new_ones(n_users, n_candidates, 1)
        weight_BZF = torch.cat(
            [self.gates.cross.weight.T.expand(n_users, -1, -1), user_gate_BF[:, None]], dim=1
        )
        gate_BCF = (torch.cat([cross_BCX, one_BC1], dim=2) @ weight_BZF + item_gate).sigmoid()
        user_s, item_s, cross_s = self._by_side(gate_BCF)
        # A product with ones spreads the gates ten times faster than a gather along columns.
        gated_BCW = item_fields * (item_s @ self.item_spread)
        weight_BZN = torch.cat(
            [
                self.first.cross.weight.T.expand(n_users, -1, -1),
                share_BGN,
                self.first.user.bias.expand(n_users, 1, -1),
            ],
            dim=1,
        )
        first_BCN = gated_BCW @ self.first.item.weight.T
        first_BCN = first_BCN + torch.cat([cross_s * cross_BCX, user_s, one_BC1], 2) @ weight_BZN
        logit_BC1: Tensor = self.out(self.rest(first_BCN))
        return logit_BC1.squeeze(2) + bias

    def outputs(
        self,
        user_S: Tensor,
        item_B: Tensor,
        item_T: Tensor,
        offsets_S1: Tensor,
        states: States | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return (B,) logits and (B, N), the last hidden layer."""
        fields, gate_BF, bias_B = self._pairs(user_S, item_B, item_T, offsets_S1, states)
        user_s, item_s, cross_s = self._by_side(gate_BF)
        first_BN = self.first.user(fields[0] * user_s.index_select(1, self.user_field))
        first_BN = first_BN + self.first.item(fields[1] * item_s.index_select(1, self.item_field))
        first_BN = first_BN + self.first.cross(fields[2] * cross_s)
        hidden_BN = self.rest(first_BN)
        return self.out(hidden_BN).squeeze(1) + bias_B, hidden_BN

    def gate_values(
        self, user_B: Tensor, item_B: Tensor, item_T: Tensor, offsets_B1: Tensor
    ) -> Tensor:
        """Return the (B, F) gates of pairs, in the order of ``names``."""
        return self._pairs(user_B, item_B, item_T, offsets_B1)[1]

    def _pairs(
        self,
        user_S: Tensor,
        item_B: Tensor,
        item_T: Tensor,
        offsets_S1: Tensor,
        states: States | None = None,
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
        """Return the fields of each side, the gates and the biases of pairs."""
        item_fields, bias_B = self.inputs.item(item_B)
        item_BW = self._read("item", item_fields)
        user_SV = self._read("user", self.inputs.user(user_S, item_T, offsets_S1))
        gate_BF = spread(self.gates.user(user_SV), states) + self.gates.item(item_BW)
        user_BV = spread(user_SV, states)
        cross_BX = user_BV.new_zeros(len(user_BV), 0)
        if self.cross.names:
            cross_BX = self._kept_cross(self.cross.pairs(item_B, item_T, offsets_S1, states))
        return (user_BV, item_BW, cross_BX), self._gate(gate_BF, cross_BX), bias_B

    def _kept_cross(self, fields: Tensor) -> Tensor:
        if all(self._kept["cross"]):
            return fields
        kept = [n for n, on in enumerate(self._kept["cross"]) if on]
        return fields[..., kept]

    def _gate(self, gate: Tensor, cross: Tensor) -> Tensor:
        gated: Tensor = (gate + self.gates.cross(cross)).sigmoid()
        return gated

    def _by_side(self, gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n_users, n_items = len(self.user_sizes), len(self.item_sizes)
        rest = len(self.names) - n_users - n_items
        user, item, cross = torch.split(gate, [n_users, n_items, rest], dim=-1)
        return user, item, cross
