"""The semantic IDs as a tree to walk: level 1, 2, 3, then the items of a bucket."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import IntArray


@dataclass(frozen=True, eq=False)
class SidTree:
    """Items sorted by their codes, so that every prefix is one range of them.

    Attributes:
        codes: (I, L) int32 of the sorted items.
        items: (I,) which item stands where.
    """

    codes: IntArray
    items: NDArray[np.int64]

    @classmethod
    def of(cls, codes: IntArray) -> SidTree:
        """Sort the items of (I, L) ``codes``."""
        order = np.lexsort(codes.T[::-1])
        return cls(codes[order], order)

    @property
    def n_levels(self) -> int:
        """Number of levels, L."""
        return int(self.codes.shape[1])

    def node(self, prefix: tuple[int, ...]) -> tuple[int, int]:
        """Return the range of the items whose codes start with ``prefix``; empty if none do."""
        low, high = 0, len(self.items)
        for level, code in enumerate(prefix[: self.n_levels]):
            column = self.codes[low:high, level]
            start = int(np.searchsorted(column, code))
            stop = int(np.searchsorted(column, code, side="right"))
            low, high = low + start, low + stop
        return low, high

    def children(
        self, prefix: tuple[int, ...]
    ) -> tuple[IntArray, NDArray[np.int64], NDArray[np.int64]]:
        """Return the codes below ``prefix``, where each starts, and how many items each has."""
        low, high = self.node(prefix)
        column = self.codes[low:high, len(prefix)]
        first = np.flatnonzero(np.append(True, column[1:] != column[:-1])[: len(column)])
        return column[first], low + first, np.diff(np.append(first, len(column)))
