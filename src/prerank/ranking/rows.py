"""Training rows as flat tensors, and the order in which they are drawn."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

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
from prerank.ranking.pooling import States

CHUNK_ROWS = 1 << 20  # rows made at once where they go to disk
BLOCK_ROWS = 1 << 16  # about as many rows are drawn at once
NARROW = 1 << 31
LEAST_COMPANY = 1.5  # rows in a group, on average, below which each is drawn by itself
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

    def joined(self, other: Rows) -> Rows:
        """Return these rows followed by the ``other`` ones."""
        names = [column.name for column in fields(self)]
        return Rows(*(torch.cat([getattr(self, name), getattr(other, name)]) for name in names))

    def first(self, count: int) -> Rows:
        """Return the first ``count`` rows, as views."""
        return Rows(*(getattr(self, column.name)[:count] for column in fields(self)))

    def cut(self, count: int | list[int]) -> list[Rows]:
        """Return all rows as parts of ``count``, as views; the last of equal parts may be shorter.

        Args:
            count: rows of every part, or of each.
        """
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


@dataclass(frozen=True, eq=False)
class Groups:
    """Rows in groups that are drawn as one: each of one user and moment, so of one history.

    The idea, clustering a step's rows so that what they share is computed once, is that of Zhao et
    al., "RecD: Deduplication for End-to-End Deep Learning Recommendation Model Training
    Infrastructure", arXiv 2211.05239. C: a bound on the rows, drawn at random, in the place of
    whole sessions.

    Attributes:
        order: (N,) int32 or int64 rows, group after group.
        start, size: (G,) int64 of each group in ``order``.
    """

    order: NDArray[np.integer[Any]]
    start: NDArray[np.int64]
    size: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Rows, most: int, rng: np.random.Generator) -> Groups | None:
        """Put rows of one user and moment together at random, at most ``most`` in a group.

        The groups stay as they are for all passes. Returns None where few rows have company:
        states would cost more than they spare.
        """
        if most == 1 or not len(rows):
            return None
        user, end, left_out = (
            column.cpu().numpy() for column in (rows.user, rows.end, rows.left_out)
        )
        # Histories lie user after user, so ends never fall from one user to the next, and the sum
        # is another for each pair of user and end. Numbers as narrow as they may be: with rows on
        # disk these are most of the memory.
        key = user + end
        key = key.astype(np.int32) if key.max() < NARROW else key
        kind = np.int32 if len(key) < NARROW else np.int64
        order: NDArray[np.integer[Any]] = np.arange(len(key), dtype=kind)
        rng.shuffle(order)
        order = order[np.argsort(key[order], kind="stable")]
        key = key[order]
        run = np.flatnonzero(np.diff(key, prepend=-1))  # where another user or moment begins
        del key
        length = np.diff(run, append=len(order))
        n_groups = -(-length // most)
        first = np.repeat(np.cumsum(n_groups) - n_groups, n_groups)
        start = np.repeat(run, n_groups) + most * (np.arange(len(first)) - first)
        size = np.diff(start, append=len(order))
        if len(order) < LEAST_COMPANY * len(start):
            return None
        if (left_out != left_out[0]).any():  # rows of a group that leave out the same, in a row
            group = np.repeat(np.arange(len(start), dtype=kind), size)
            order = order[np.lexsort((left_out[order], group))]
        return cls(order, start, size)

    def rows(self, group_G: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows (N,) of some groups, group after group."""
        start, size = self.start[group_G], self.size[group_G]
        stop = np.cumsum(size)
        place = np.repeat(start - stop + size, size)
        place += np.arange(len(place))
        return self.order[place].astype(np.int64)


class Drawn(NamedTuple):
    """Rows of a step.

    Attributes:
        number: (B,) int64 of each row among those drawn from.
        rows: the rows themselves.
        states: which of them have user and history in common; None where nobody looked.
        users: (S) one row of each state; all rows where states are None.
    """

    number: Tensor
    rows: Rows
    states: States | None
    users: Rows

    def followed(self, other: Drawn) -> Drawn:
        """Return these rows followed by the ``other`` ones."""
        number, rows = torch.cat([self.number, other.number]), self.rows.joined(other.rows)
        if self.states is None and other.states is None:
            return Drawn(number, rows, None, rows)
        states = self.states or States.apart(len(self.rows), number.device)
        others = other.states or States.apart(len(other.rows), number.device)
        return Drawn(number, rows, states.followed(others), self.users.joined(other.users))


def _states(rows: Rows, count: int) -> tuple[list[States], list[Rows]]:
    """Return states and users of each ``count`` rows, of rows that hold several such parts."""
    new = torch.ones(len(rows), dtype=torch.bool, device=rows.user.device)
    new[1:] = rows.user[1:] != rows.user[:-1]
    for column in (rows.end, rows.left_out):
        new[1:] |= column[1:] != column[:-1]
    new[::count] = True
    of_row = new.cumsum(0).view(-1, count) - 1
    first = new.nonzero().squeeze(1)
    step = first.div(count, rounding_mode="floor")
    n_states, stop = torch.bincount(step).tolist(), first.new_tensor([count])
    starts = torch.split(first - step * count, n_states)
    states = [
        States(of, torch.cat([start, stop]))
        for of, start in zip((of_row - of_row[:, :1]).unbind(), starts, strict=True)
    ]
    return states, rows.take(first).cut(n_states)


class Draw:
    """Draws rows without replacement, pass after pass, each pass in a new seeded order.

    Rows are gathered a block of many steps at a time: a step's own are slices of it.

    Args:
        rows: to draw from.
        rng: of the order.
        device: where drawn rows go.
        groups: of rows that are drawn together; None: each by itself.
    """

    def __init__(
        self,
        rows: Rows,
        rng: np.random.Generator,
        device: torch.device,
        groups: Groups | None = None,
    ) -> None:
        self._rows, self._rng, self._device, self._groups = rows, rng, device, groups
        self._n_units = len(rows) if groups is None else len(groups.start)
        self._at_once = max(1, BLOCK_ROWS * self._n_units // max(1, len(rows)))
        self._left: NDArray[np.int64] = np.zeros(0, dtype=np.int64)  # groups or rows of this pass
        self._number: NDArray[np.int64] = np.zeros(0, dtype=np.int64)  # rows not gathered yet
        self._ready: list[Drawn] = []  # cut for the next steps, the last one first

    def take(self, count: int) -> Drawn:
        """Return the next ``count`` rows."""
        if self._ready and len(self._ready[-1].number) == count:
            return self._ready.pop()
        self._put_back()
        while count > len(self._number):
            self._number = np.concatenate([self._number, self._next()])
        # The next steps will want as many rows.
        n_rows = min(len(self._number) // count, CUT_STEPS) * count
        number, self._number = torch.from_numpy(self._number[:n_rows]), self._number[n_rows:]
        rows = self._rows.take(number.to(self._rows.user.device)).to(self._device)
        users = parts = rows.cut(count)
        states: Sequence[States | None] = [None] * len(parts)
        if self._groups is not None:
            states, users = _states(rows, count)
        cut = zip(torch.split(number.to(self._device), count), parts, states, users, strict=True)
        self._ready = [Drawn(*step) for step in cut][::-1]
        return self._ready.pop()

    def state(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Mapping[str, Any]]:
        """Return the rows (N,) that come next, what is left of the pass after them, the generator.

        What is left is (M,) int64, of groups or, where there are none, of rows.
        """
        self._put_back()
        return self._number, self._left, self._rng.bit_generator.state

    def restore(
        self, number: NDArray[np.int64], left: NDArray[np.int64], state: Mapping[str, Any]
    ) -> None:
        """Go on where `state` was asked; for a draw from which nothing was taken yet."""
        self._number, self._left, self._rng.bit_generator.state = number, left, state

    def _put_back(self) -> None:
        """Undo what was cut for steps of another size."""
        ahead = [step.number.cpu().numpy() for step in reversed(self._ready)]
        self._number, self._ready = np.concatenate([*ahead, self._number]), []

    def _next(self) -> NDArray[np.int64]:
        """Return the numbers of some next rows."""
        if not len(self._left):
            self._left = self._rng.permutation(self._n_units)
        units, self._left = self._left[: self._at_once], self._left[self._at_once :]
        return units if self._groups is None else self._groups.rows(units)
