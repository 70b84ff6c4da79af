"""Cross fields: what a user's history says of a candidate, computed on the fly.

For each feature of the items: the share of the history that has the candidate's value
(of several values: the mean share of them, each counted once); and the cosine of the candidate's
content with the history's mean content. Nothing here is learned. The fields and their forms are C.

What depends on the user alone (`user_parts`) is made once a request, so that a candidate costs a
look-up a value and one dot product.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from prerank.ranking.context import ScoringContext
from prerank.ranking.model import Parts
from prerank.ranking.pooling import (
    States,
    ragged_mean,
    ragged_rows,
    ragged_sum,
    spread,
    spread_histories,
)


class CrossFields(nn.Module):
    """Cross fields of user histories and candidates.

    Args:
        context: item features and content vectors.

    Attributes:
        names: of the X fields, such as ``history share of genre``.

    Letters: B rows or requests, C candidates, K codes of all item features, P slots of codes an
    item has, E content dims, X fields, T history items end to end.
    """

    slots: Tensor
    used: Tensor
    feature: Tensor
    unit: Tensor

    def __init__(self, context: ScoringContext) -> None:
        super().__init__()
        table = context.items
        slots = [table.codes] + [lists.codes for lists in table.lists]
        missing = [table.codes[-1:]] + [lists.codes[-1:] for lists in table.lists]
        slots_IP = np.concatenate(slots, axis=1)
        # The last row is the unknown item: it holds the code for missing in every slot.
        used_IP = (slots_IP != np.concatenate(missing, axis=1)) & ~_repeats(slots_IP)
        names = [*table.names, *(lists.name for lists in table.lists)]
        widths = [1] * len(table.names) + [lists.codes.shape[1] for lists in table.lists]
        self.widths = widths
        self.n_codes = max(table.n_codes, 1)
        reads_history = len(context.interactions) > 0
        self.reads_content = reads_history and context.content.shape[1] > 0
        self.names = tuple(f"history share of {name}" for name in names if reads_history)
        self.reads_shares = bool(self.names)
        if self.reads_content:
            self.names += ("content cosine",)
        norm = np.linalg.norm(context.content, axis=1, keepdims=True)
        unit = context.content / np.maximum(norm, np.finfo(np.float32).tiny)
        self.register_buffer("slots", torch.from_numpy(slots_IP), persistent=False)
        self.register_buffer("used", torch.from_numpy(used_IP), persistent=False)
        self.register_buffer("unit", torch.from_numpy(unit), persistent=False)
        feature = torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(widths).long())
        self.register_buffer("feature", feature, persistent=False)

    def user_parts(self, item_T: Tensor, offsets_B1: Tensor) -> Parts:
        """Return (B, K) shares of each code in the histories and (B, E) unit mean content."""
        parts = []
        n_rows = offsets_B1.shape[0] - 1
        if self.reads_shares:
            row_T = ragged_rows(offsets_B1, item_T.shape[0])
            weight_TP = self.used.index_select(0, item_T).to(self.unit.dtype)
            place_TP = row_T[:, None] * self.n_codes + self.slots.index_select(0, item_T)
            count_BK = weight_TP.new_zeros(n_rows * self.n_codes)
            count_BK = count_BK.scatter_add(0, place_TP.flatten(), weight_TP.flatten())
            size_B = offsets_B1.diff().clamp_min(1)
            parts.append(count_BK.view(n_rows, self.n_codes) / size_B[:, None])
        if self.reads_content:
            parts.append(functional.normalize(ragged_mean(self.unit, item_T, offsets_B1), dim=1))
        return tuple(parts)

    def item_parts(self, item_B: Tensor) -> Parts:
        """Return (B, P) int64 codes, (B, P) weights of them, (B, E) unit content."""
        parts = []
        if self.reads_shares:
            used_BP = self.used.index_select(0, item_B).to(self.unit.dtype)
            parts += [self.slots.index_select(0, item_B).long(), self._weights(used_BP)]
        if self.reads_content:
            parts.append(self.unit.index_select(0, item_B))
        return tuple(parts)

    def combine(self, user_parts: Parts, item_parts: Parts) -> Tensor:
        """Return the (B, C, X) fields.

        Args:
            user_parts: of B requests.
            item_parts: each (B, C, ...), or (1, C, ...) for candidates that all share.
        """
        fields, users, items = [], list(user_parts), list(item_parts)
        if self.reads_shares:
            share_BK, code_BCP, weight_BCP = users.pop(0), items.pop(0), items.pop(0)
            code_BCP = code_BCP.expand(share_BK.shape[0], -1, -1)
            found_BN = share_BK.gather(1, code_BCP.flatten(1))
            fields.append(self._by_feature(found_BN.view(code_BCP.shape) * weight_BCP))
        if self.reads_content:
            cosine_BC1 = items.pop(0) @ users.pop(0)[:, :, None]
            fields.append(cosine_BC1)
        return torch.cat(fields, dim=2)

    @torch.no_grad()
    def pairs(
        self, item_B: Tensor, item_S: Tensor, offsets_S1: Tensor, states: States | None = None
    ) -> Tensor:
        """Return the (B, X) fields of pairs, without the shares of all codes.

        Args:
            item_B: (B,) int64 candidates.
            item_S, offsets_S1: the histories of their users' states.
            states: as in `PreRankerModel.outputs`.
        """
        fields = []
        if self.reads_shares:
            item_T, offsets_B1 = spread_histories(item_S, offsets_S1, states)
            row_T = ragged_rows(offsets_B1, len(item_T))
            own_BP, past_TP = self.slots.index_select(0, item_B), self.slots.index_select(0, item_T)
            used_BP = self.used.index_select(0, item_B).to(self.unit.dtype)
            weight_BP = self._weights(used_BP)
            met, start = [], 0
            for width in self.widths:
                part = slice(start, start + width)
                own_T1Q = own_BP[:, part].index_select(0, row_T)[:, None]
                equal_TQ = (past_TP[:, part, None] == own_T1Q).any(1)
                weighted_TQ = equal_TQ * weight_BP[:, part].index_select(0, row_T)
                met.append(weighted_TQ.sum(1))
                start += width
            size_B1 = offsets_B1.diff().clamp_min(1)[:, None]
            fields.append(ragged_sum(torch.stack(met, 1), row_T, len(item_B)) / size_B1)
        if self.reads_content:
            mean_SE = functional.normalize(ragged_mean(self.unit, item_S, offsets_S1), dim=1)
            mean_BE = spread(mean_SE, states)
            fields.append((mean_BE * self.unit.index_select(0, item_B)).sum(1, keepdim=True))
        return torch.cat(fields, dim=1)

    def _weights(self, used_BP: Tensor) -> Tensor:
        """Return (B, P): one over the number of values that the item has of the slot's feature."""
        count_BX = self._by_feature(used_BP[:, None])[:, 0]
        return used_BP / count_BX.index_select(1, self.feature).clamp_min(1)

    def _by_feature(self, value_BCP: Tensor) -> Tensor:
        """Return (B, C, features): the sum over each feature's slots."""
        if len(self.widths) == value_BCP.shape[2]:
            return value_BCP  # one slot each
        parts = torch.split(value_BCP, self.widths, dim=2)
        return torch.cat([part.sum(2, keepdim=True) for part in parts], dim=2)


def _repeats(code_IP: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return where a row has a code again: an ordered list may name a value twice."""
    order_IP = np.argsort(code_IP, axis=1, kind="stable")
    again_IP = np.diff(np.take_along_axis(code_IP, order_IP, axis=1), axis=1) == 0
    repeat_IP = np.zeros(code_IP.shape, dtype=np.bool_)
    np.put_along_axis(repeat_IP, order_IP[:, 1:], again_IP, axis=1)
    return repeat_IP
