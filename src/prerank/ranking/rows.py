"""Training rows as flat tensors, and the order in which they are drawn."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prerank.artifacts import (
    TRAIN,
    UNKNOWN_CLICK,
    UNLABELED,
    Dataset,
    FloatArray,
    IntArray,
    PseudoLabels,
    TimeArray,
)
from prerank.ranking.context import ScoringContext

CHUNK_ROWS = 1 << 20  # rows made at once where they go to disk
BLOCK_ROWS = 1 << 16  # rows drawn at once
CUT_STEPS = 32  # most steps whose rows are cut from a block at once


@dataclass(frozen=True, eq=False)
class Rows:
    """Pairs to learn from, by column, on one device.

    Attributes:
        user, item: (N,) int64; U and I = unknown.
        end: (N,) int64 where the row's history ends in the interactions.
        left_out: (N,) int32 item to leave out of the history, -1 for none.
        target: (N,) float32, the click or the pseudo-label.
        weight: (N,) float32 confidence; 1 on exposed rows.
    """

    user: Tensor
    item: Tensor
    end: Tensor
    left_out: Tensor
    target: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.user)

    def take(self, index: Tensor) -> Rows:
        """Return the rows at ``index`` (B,) int64."""
        return Rows(*(_taken(getattr(self, column.name), index) for column in fields(self)))

    def to(self, device: torch.device) -> Rows:
        """Return the rows on ``device``."""
        return Rows(*(getattr(self, column.name).to(device) for column in fields(self)))

    def joined(self, *others: Rows) -> Rows:
        """Return these rows followed by the ``others``."""
        names, parts = [column.name for column in fields(self)], (self, *others)
        return Rows(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def split(self, count: int) -> tuple[Rows, Rows]:
        """Return the first ``count`` rows and the rest, as views."""
        parts = [getattr(self, column.name) for column in fields(self)]
        return Rows(*(part[:count] for part in parts)), Rows(*(part[count:] for part in parts))

    def cut(self, count: int) -> list[Rows]:
        """Return all rows as parts of ``count``, as views; the last part may be shorter."""
        columns = (torch.split(getattr(self, column.name), count) for column in fields(self))
        return [Rows(*parts) for parts in zip(*columns, strict=True)]


def _rows(
    context: ScoringContext,
    device: torch.device,
    user: IntArray,
    item: IntArray,
    time: TimeArray,
    target: FloatArray,
    weight: FloatArray,
) -> Rows:
    columns = (
        user.astype(np.int64),
        item.astype(np.int64),
        context.history_ends(user, time),
        context.left_out(user, item),
        target.astype(np.float32),
        weight.astype(np.float32),
    )
    return Rows(*(_column(column).to(device) for column in columns))


def _column(values: NDArray[Any]) -> Tensor:
    """Return ``values`` as a tensor; as one value seen many times where all are equal."""
    column = torch.from_numpy(values)
    return column[:1].expand(len(column)) if len(values) and (values == values[0]).all() else column


def _taken(column: Tensor, index: Tensor) -> Tensor:
    """Return (B,) values of a column; one value seen many times stays one."""
    if len(column) and column.stride() == (0,):
        return column[:1].expand(len(index))
    return column.index_select(0, index)


def exposed_rows(
    dataset: Dataset, context: ScoringContext, device: torch.device, *, on_disk: bool = False
) -> Rows:
    """Return D_e: the training exposures whose click is known.

    Args:
        dataset: the log.
        context: where histories end.
        device: where the rows go; rows on disk stay there until they are taken.
        on_disk: keep the columns in mapped temporary files, made chunk by chunk.
    """
    table = dataset.exposures
    if on_disk:
        return _mapped_rows(dataset, context)
    keep = (table.split == TRAIN) & (table.click != UNKNOWN_CLICK)
    click = table.click[keep].astype(np.float32)
    user, item, time = table.user[keep], table.item[keep], table.time[keep]
    return _rows(context, device, user, item, time, click, np.ones_like(click))


def _mapped_rows(dataset: Dataset, context: ScoringContext) -> Rows:
    """Return D_e in temporary files that vanish with the rows; memory holds a chunk at a time."""
    table = dataset.exposures
    chunks = [slice(n, n + CHUNK_ROWS) for n in range(0, len(table), CHUNK_ROWS)]
    kept = [
        np.flatnonzero((table.split[part] == TRAIN) & (table.click[part] != UNKNOWN_CLICK))
        for part in chunks
    ]
    n_rows = sum(len(rows) for rows in kept)
    kinds = (np.int64, np.int64, np.int64, np.int32, np.float32, np.float32)
    if not n_rows:
        return Rows(*(torch.from_numpy(np.zeros(0, kind)) for kind in kinds))
    columns = []
    for kind in kinds:
        with tempfile.TemporaryFile() as file:  # mapped, it outlives its name and its handle
            columns.append(np.memmap(file, kind, "w+", shape=(n_rows,)))
    start = 0
    for part, rows in zip(chunks, kept, strict=True):
        user, item = table.user[part][rows], table.item[part][rows]
        time = table.time[part][rows]
        click = table.click[part][rows].astype(np.float32)
        made = _rows(context, torch.device("cpu"), user, item, time, click, np.ones_like(click))
        for column, field in zip(columns, fields(made), strict=True):
            column[start : start + len(rows)] = getattr(made, field.name).numpy()
        start += len(rows)
    return Rows(*(torch.from_numpy(column) for column in columns))


def pseudo_rows(labels: PseudoLabels, context: ScoringContext, device: torch.device) -> Rows:
    """Return the pseudo-labeled part of D_u; rows that abstain are left out for good.

    Where nothing is labeled on purpose (source ``unlabeled``) every row stays, with weight 0.
    """
    keep = (labels.confidence > 0) | (labels.source == UNLABELED)
    user, item, time = labels.user[keep], labels.item[keep], labels.time[keep]
    return _rows(context, device, user, item, time, labels.label[keep], labels.confidence[keep])


class Draw:
    """Draws rows without replacement, pass after pass, each pass in a new seeded order.

    Rows are gathered a block of many steps at a time: a step's own are slices of it.

    Args:
        rows: to draw from.
        rng: of the order.
        device: where drawn rows go.
    """

    def __init__(self, rows: Rows, rng: np.random.Generator, device: torch.device) -> None:
        self._rows, self._rng, self._device = rows, rng, device
        self._left: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._index = torch.zeros(0, dtype=torch.int64, device=device)
        self._block = self._gathered(self._index)
        self._ready: list[tuple[Tensor, Rows]] = []  # cut for the next steps, the last one first

    def take(self, count: int) -> tuple[Tensor, Rows]:
        """Return the next ``count`` row numbers, (count,) int64, and their rows."""
        if self._ready and len(self._ready[-1][0]) == count:
            return self._ready.pop()
        self._put_back()
        if count > len(self._index):
            missing = count - len(self._index)
            more = self._order(max(missing, min(BLOCK_ROWS, len(self._rows))))
            self._block = self._block.joined(self._gathered(more))
            self._index = torch.cat([self._index, more.to(self._device)])
        # The next steps will want as many rows.
        n_rows = min(len(self._index) // count, CUT_STEPS) * count
        whole, self._block = self._block.split(n_rows)
        index, self._index = self._index[:n_rows], self._index[n_rows:]
        self._ready = list(zip(torch.split(index, count), whole.cut(count), strict=True))[::-1]
        return self._ready.pop()

    def state(self) -> tuple[NDArray[np.int64], Mapping[str, Any]]:
        """Return the numbers that come next, (N,) int64, and the generator's state after them."""
        self._put_back()
        return np.concatenate(
            [self._index.cpu().numpy(), self._left]
        ), self._rng.bit_generator.state

    def restore(self, left: NDArray[np.int64], state: Mapping[str, Any]) -> None:
        """Go on where `state` was asked; for a draw from which nothing was taken yet."""
        self._left, self._rng.bit_generator.state = left, state

    def _put_back(self) -> None:
        """Undo what was cut for steps of another size."""
        if self._ready:
            indices, blocks = zip(*self._ready[::-1], strict=True)
            self._index = torch.cat([*indices, self._index])
            self._block = blocks[0].joined(*blocks[1:], self._block)
            self._ready = []

    def _gathered(self, index: Tensor) -> Rows:
        return self._rows.take(index.to(self._rows.user.device)).to(self._device)

    def _order(self, count: int) -> Tensor:
        while len(self._left) < count:
            order = self._rng.permutation(len(self._rows))
            self._left = np.concatenate([self._left, order]) if len(self._left) else order
        taken, self._left = self._left[:count], self._left[count:]
        return torch.from_numpy(taken)
