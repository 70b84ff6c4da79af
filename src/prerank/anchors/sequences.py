"""Training sequences: each user's positives before the anchor cut, as items; tokens come last.

Letters: U users, N positives of all users, S sequences, H items of the longest one, B sequences of
a batch, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import Dataset, FloatArray, IntArray, TimeArray, places_of
from prerank.data.history import anchor_ends


@dataclass(frozen=True, eq=False)
class Sequences:
    """Runs of items: sequence s is ``item[offsets[s]:offsets[s + 1]]``, most recent last.

    Attributes:
        item: (N,) int32.
        offsets: (S+1,) int64.
    """

    item: IntArray
    offsets: TimeArray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> TimeArray:
        """Items of each sequence, (S,)."""
        return np.diff(self.offsets)

    def owners(self) -> TimeArray:
        """Return (N,) int64: the sequence of each item."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def keep(self, mask: NDArray[np.bool_]) -> Sequences:
        """Return the same sequences without the items where ``mask`` (N,) is False."""
        kept = np.concatenate([[0], np.cumsum(mask)])[self.offsets]
        return Sequences(self.item[mask], kept.astype(np.int64))

    def take(self, rows: TimeArray) -> Sequences:
        """Return the sequences ``rows``, in that order."""
        place, offsets = places_of(self.offsets, rows)
        return Sequences(self.item[place], offsets)

    def shuffled(self, rng: np.random.Generator) -> Sequences:
        """Return the sequences with the items of each in random order."""
        order = np.lexsort((rng.random(len(self.item)), self.owners()))
        return Sequences(self.item[order], self.offsets)

    def windows(self, length: int) -> Sequences:
        """Cut each sequence into windows of at most ``length`` items; the most recent is full."""
        owner = self.owners()
        from_end = self.offsets[1:][owner] - 1 - np.arange(len(self.item))
        window = -(from_end // length)
        starts = np.ones(len(self.item), dtype=bool)
        starts[1:] = (owner[1:] != owner[:-1]) | (window[1:] != window[:-1])
        offsets = np.append(np.flatnonzero(starts), len(self.item)).astype(np.int64)
        return Sequences(self.item, offsets)

    def last(self, length: int) -> Sequences:
        """Return the last ``length`` items of each sequence."""
        from_end = self.offsets[1:][self.owners()] - np.arange(len(self.item))
        return self.keep(from_end <= length)

    def distinct(self) -> Sequences:
        """Return the sequences with only the last occurrence of each item of a sequence."""
        owner, rows = self.owners(), np.arange(len(self.item))
        latest_first = np.lexsort((-rows, self.item, owner))
        kept = np.empty(len(rows), dtype=bool)
        kept[latest_first] = _places(owner[latest_first], self.item[latest_first]) == 0
        return self.keep(kept)

    def spread(self, length: int, cluster: IntArray) -> Sequences:
        """Return at most ``length`` items of each sequence, evenly over clusters, in their order.

        Clusters take turns: the most recent item of each, then the second of each, and so on; in
        the last turn the most recent items win.

        Args:
            cluster: (I,) the cluster of each item.
        """
        owner, rows = self.owners(), np.arange(len(self.item))
        group = cluster[self.item]
        by_group = np.lexsort((-rows, group, owner))
        turn = np.empty(len(rows), dtype=np.int64)
        turn[by_group] = _places(owner[by_group], group[by_group])
        by_turn = np.lexsort((-rows, turn, owner))
        place = np.empty(len(rows), dtype=np.int64)
        place[by_turn] = _places(owner[by_turn])
        return self.keep(place < length)

    def padded(self, rows: TimeArray) -> tuple[IntArray, TimeArray]:
        """Return the items of ``rows`` as (B, H) int32, padded right with -1, and lengths (B,)."""
        lengths = self.lengths[rows]
        column = np.arange(lengths.max(initial=0))
        inside = column < lengths[:, None]
        position = np.where(inside, self.offsets[rows][:, None] + column, 0)
        return np.where(inside, self.item[position], -1).astype(np.int32), lengths


def _places(*keys: NDArray[Any]) -> TimeArray:
    """Return (N,): the place of each row within its run of equal keys."""
    rows = np.arange(len(keys[0]))
    starts = np.ones(len(rows), dtype=bool)
    starts[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    return rows - np.maximum.accumulate(np.where(starts, rows, 0))


def is_unordered(dataset: Dataset, order: str) -> bool:
    """Say whether histories are sets: by the config's ``order`` or, if auto, by the data set."""
    return order == "shuffle" or (order == "auto" and dataset.time_unit == "none")


def anchor_sequences(dataset: Dataset) -> Sequences:
    """Return one sequence a user, (U,): all positives strictly before the anchor cut."""
    interactions = dataset.interactions
    starts, ends = interactions.offsets(len(dataset.users))[:-1], anchor_ends(dataset)
    inside = np.arange(len(interactions)) < ends[interactions.user]
    offsets = np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int64)
    return Sequences(interactions.item[inside], offsets)


def keep_probability(item: IntArray, n_items: int, alpha: float, quantile: float) -> FloatArray:
    """Return (I,) float32: how likely each item survives popularity down-sampling.

    keep(i) = min(1, (t / f_i) ** alpha), f the frequency in the training sequences and t its
    ``quantile`` over items that occur (method.md stage 3: down-sampling S, form C).
    """
    frequency = np.bincount(item, minlength=n_items).astype(np.float64)
    threshold = np.quantile(frequency[frequency > 0], quantile) if len(item) else 1.0
    return np.minimum(1.0, (threshold / np.maximum(frequency, 1.0)) ** alpha).astype(np.float32)


def batches(lengths: TimeArray, batch_size: int, rng: np.random.Generator) -> list[TimeArray]:
    """Return the rows of each batch: like lengths together, ties and batches in random order."""
    order = np.lexsort((rng.random(len(lengths)), lengths)).astype(np.int64)
    parts = np.split(order, np.arange(batch_size, len(order), batch_size))
    return [parts[n] for n in rng.permutation(len(parts))] if len(order) else []


def token_chunks(
    rows: TimeArray, n_tokens: TimeArray, budget: int, most_rows: int
) -> list[TimeArray]:
    """Cut ``rows`` into runs of at most ``most_rows`` rows that fit ``budget`` tokens, padded.

    A run costs its rows times its longest row; one row longer than the budget stands alone. Sort
    by length first, or padding wastes the budget. The loop is over runs, not over rows.
    """
    chunks, at = [], 0
    while at < len(rows):
        longest = np.maximum.accumulate(n_tokens[at : at + most_rows])
        inside = longest * np.arange(1, len(longest) + 1) <= budget
        size = max(1, int(np.searchsorted(~inside, True)))
        chunks.append(rows[at : at + size])
        at += size
    return chunks
