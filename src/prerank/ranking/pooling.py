"""Mean of table rows over ragged histories, the hot spot of training.

Histories stay ragged (no padding), and the gradient is computed as the transposed sum: sort pairs
of item and history once, each packed into one number, then pool the output gradients by item. That
is several times faster on a CPU than the built-in backward pass, touches every memory line once,
and is deterministic on every device. On a CPU NumPy repeats and sorts: in vector registers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def _bag_sum(table: Tensor, index: Tensor, offsets: Tensor) -> Tensor:
    return functional.embedding_bag(index, table, offsets, mode="sum", include_last_offset=True)


class _RaggedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_ID: Tensor, item_T: Tensor, offsets_B1: Tensor) -> Tensor:
        ctx.save_for_backward(item_T, offsets_B1)
        ctx.n_rows = len(table_ID)
        return _bag_sum(table_ID, item_T, offsets_B1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        item_T, offsets_B1 = ctx.saved_tensors
        n_rows = len(offsets_B1) - 1
        bits = max(n_rows - 1, 1).bit_length()
        kind = torch.int32 if ctx.n_rows << bits < 1 << 31 else torch.int64
        row_B = torch.arange(n_rows, device=item_T.device, dtype=kind)
        row_T = repeated(row_B, offsets_B1.diff(), len(item_T))
        pair_T = sorted_numbers(torch.add(row_T, item_T.to(kind), alpha=1 << bits))
        by_item = torch.bincount(item_T, minlength=ctx.n_rows).cumsum(0)
        by_item = torch.cat([by_item.new_zeros(1), by_item]).to(kind)
        return _bag_sum(grads[0].contiguous(), pair_T & ((1 << bits) - 1), by_item), None, None


class States(NamedTuple):
    """Which rows have a user and a history in common; such rows follow one another.

    Attributes:
        of_row: (B,) int64 state of each row, in ascending order.
        offsets: (S + 1,) int64; the rows of state s are ``offsets[s]`` to ``offsets[s + 1]``.
    """

    of_row: Tensor
    offsets: Tensor

    @classmethod
    def apart(cls, n_rows: int, device: torch.device) -> States:
        """Return a state of its own for each row."""
        every = torch.arange(n_rows + 1, device=device)
        return cls(every[:-1], every)

    def of_rows(self, place_b: Tensor) -> tuple[States, Tensor]:
        """Return the states of some rows (b,), ascending, and which of these states they are."""
        which, of_row, count = torch.unique_consecutive(
            self.of_row.index_select(0, place_b), return_inverse=True, return_counts=True
        )
        return States(of_row, torch.cat([count.new_zeros(1), count.cumsum(0)])), which

    def followed(self, other: States) -> States:
        """Return these states followed by the ``other``, whose rows follow as well."""
        return States(
            torch.cat([self.of_row, other.of_row + len(self.offsets) - 1]),
            torch.cat([self.offsets[:-1], other.offsets + len(self.of_row)]),
        )


class _Spread(torch.autograd.Function):
    """One row a state -> one row a row; the backward pass adds them up, alike on every device."""

    @staticmethod
    def forward(ctx: Any, values_SD: Tensor, of_row_B: Tensor, offsets_S1: Tensor) -> Tensor:
        ctx.save_for_backward(offsets_S1)
        return values_SD.index_select(0, of_row_B)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return added(grads[0], ctx.saved_tensors[0]), None, None


def added(values_BD: Tensor, offsets_S1: Tensor) -> Tensor:
    """Return (S, ...): the sums of the rows (B, ...) from each offset to the next; no graph."""
    shape = (len(offsets_S1) - 1, *values_BD.shape[1:])
    if not values_BD.numel():  # rows without a column
        return values_BD.new_zeros(shape)
    row_B = torch.arange(len(values_BD), device=values_BD.device)
    total_SD = _bag_sum(values_BD.flatten(1).contiguous(), row_B, offsets_S1)
    return total_SD.view(shape)


def spread(values_SD: Tensor, states: States | None) -> Tensor:
    """Return (B, ...): the values (S, ...) of each row's state; as they are if states are None."""
    if states is None:
        return values_SD
    if values_SD.requires_grad and torch.is_grad_enabled():
        found: Tensor = _Spread.apply(values_SD, *states)  # type: ignore[no-untyped-call]
        return found
    return values_SD.index_select(0, states.of_row)


def spread_histories(
    item_T: Tensor, offsets_S1: Tensor, states: States | None
) -> tuple[Tensor, Tensor]:
    """Return the histories of rows, as (T,) items and (B + 1,) borders; as `spread`."""
    if states is None:
        return item_T, offsets_S1
    size_B = offsets_S1.diff().index_select(0, states.of_row)
    offsets_B1 = torch.cat([size_B.new_zeros(1), size_B.cumsum(0, dtype=size_B.dtype)])
    total = int(offsets_B1[-1])
    back_B = offsets_S1.index_select(0, states.of_row) - offsets_B1[:-1]
    place_T = torch.arange(total, device=item_T.device) + repeated(back_B, size_B, total)
    return item_T.index_select(0, place_T), offsets_B1


def repeated(values_B: Tensor, count_B: Tensor, total: int) -> Tensor:
    """Return (total,): each value as often as its count says; no graph.

    Args:
        values_B: (B,).
        count_B: (B,) integers >= 0.
        total: their sum.
    """
    if values_B.device.type == "cpu":
        return torch.from_numpy(np.repeat(values_B.numpy(), count_B.numpy()))
    return values_B.repeat_interleave(count_B, output_size=total)


def sorted_numbers(number_T: Tensor) -> Tensor:
    """Return (T,) integers in ascending order; may sort in place."""
    if number_T.device.type == "cpu":
        number_T.numpy().sort()
        return number_T
    return number_T.sort().values


def ragged_rows(offsets_B1: Tensor, n_items: int) -> Tensor:
    """Return (T,) int64: the history that each item stands in.

    Args:
        offsets_B1: (B + 1,) borders of the histories.
        n_items: T, the last of them.
    """
    starts_T1 = offsets_B1.new_zeros(n_items + 1, dtype=torch.int64)
    ends_B = offsets_B1[1:].long()
    return starts_T1.scatter_add(0, ends_B, torch.ones_like(ends_B)).cumsum(0)[:-1]


def ragged_sum(values_TD: Tensor, row_T: Tensor, n_rows: int) -> Tensor:
    """Return (n_rows, D): the sum of the values of each history."""
    total_BD = values_TD.new_zeros(n_rows, values_TD.shape[1])
    return total_BD.scatter_add(0, row_T[:, None].expand_as(values_TD), values_TD)


def ragged_softmax(score_T: Tensor, row_T: Tensor, n_rows: int) -> Tensor:
    """Return (T,): softmax of the scores within each history."""
    most_B = score_T.new_full((n_rows,), -torch.inf)
    most_B = most_B.scatter_reduce(0, row_T, score_T.detach(), "amax")
    raised_T = (score_T - most_B.index_select(0, row_T)).exp()
    total_B = raised_T.new_zeros(n_rows).scatter_add(0, row_T, raised_T)
    return raised_T / total_B.index_select(0, row_T)


def ragged_mean(table_ID: Tensor, item_T: Tensor, offsets_B1: Tensor) -> Tensor:
    """Return (B, D): the mean of ``table_ID`` rows over each history; zeros for an empty one.

    Args:
        table_ID: (I, D) float32; receives a dense gradient if it asks for one.
        item_T: (T,) int32, the items of all histories end to end.
        offsets_B1: (B + 1,) int32; history b is ``item_T[offsets_B1[b]:offsets_B1[b + 1]]``.
    """
    if torch.compiler.is_exporting():
        # ONNX has no bags; gathering and adding rows up is the same sum. Sizes by shape here and
        # wherever a graph is exported: `len` would make the example's size a constant.
        row_T = ragged_rows(offsets_B1, item_T.shape[0])
        sum_BD = ragged_sum(table_ID.index_select(0, item_T), row_T, offsets_B1.shape[0] - 1)
    elif table_ID.requires_grad and torch.is_grad_enabled():
        sum_BD = _RaggedSum.apply(table_ID, item_T, offsets_B1)  # type: ignore[no-untyped-call]
    else:
        sum_BD = _bag_sum(table_ID.detach(), item_T, offsets_B1)
    return sum_BD / offsets_B1.diff().clamp_min(1)[:, None]
