"""Training rows as flat tensors, and the order in which they are drawn."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, fields

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
        return Rows(*(getattr(self, column.name).index_select(0, index) for column in fields(self)))

    def to(self, device: torch.device) -> Rows:
        """Return the rows on ``device``."""
        return Rows(*(getattr(self, column.name).to(device) for column in fields(self)))

    def joined(self, other: Rows) -> Rows:
        """Return these rows followed by the ``other`` ones."""
        names = [column.name for column in fields(self)]
        return Rows(*(torch.cat([getattr(self, n), getattr(other, n)]) for n in names))


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
    return Rows(*(torch.from_numpy(column).to(device) for column in columns))


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
    """Draws rows without replacement, pass after pass, each pass in a new seeded order."""

    def __init__(self, n_rows: int, rng: np.random.Generator) -> None:
        self._n_rows = n_rows
        self._rng = rng
        self._left: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def take(self, count: int) -> Tensor:
        """Return the next ``count`` row numbers, (count,) int64."""
        while len(self._left) < count:
            self._left = np.concatenate([self._left, self._rng.permutation(self._n_rows)])
        taken, self._left = self._left[:count], self._left[count:]
        return torch.from_numpy(taken)
