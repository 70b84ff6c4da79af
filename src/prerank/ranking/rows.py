"""Training rows as flat tensors, and the order in which they are drawn."""

from __future__ import annotations

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


def exposed_rows(dataset: Dataset, context: ScoringContext, device: torch.device) -> Rows:
    """Return D_e: the training exposures whose click is known."""
    table = dataset.exposures
    keep = (table.split == TRAIN) & (table.click != UNKNOWN_CLICK)
    click = table.click[keep].astype(np.float32)
    user, item, time = table.user[keep], table.item[keep], table.time[keep]
    return _rows(context, device, user, item, time, click, np.ones_like(click))


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
