"""Vocabulary: raw ids at the border, dense indices everywhere inside."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prerank.errors import DataError


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A sorted set of string ids; the index of an id is its rank.

    Attributes:
        ids: (N,) unicode array, strictly ascending.
    """

    ids: NDArray[np.str_]

    def __post_init__(self) -> None:
        if self.ids.ndim != 1 or self.ids.dtype.kind != "U":
            raise DataError(
                "vocabulary ids are not a 1-D string array",
                must="(N,) unicode array",
                got=f"{self.ids.shape} {self.ids.dtype}",
            )
        if len(self.ids) > 1 and not bool(np.all(self.ids[:-1] < self.ids[1:])):
            raise DataError(
                "vocabulary ids are not sorted and unique", hint="use Vocabulary.of(values)"
            )

    @classmethod
    def of(cls, values: Iterable[object]) -> Vocabulary:
        """Build the vocabulary of all distinct ``values``, each read as text."""
        texts = np.array([str(value) for value in values], dtype=np.str_)
        return cls(np.unique(texts))

    def __len__(self) -> int:
        return len(self.ids)

    def lookup(self, values: Iterable[object] | NDArray[np.str_]) -> NDArray[np.int32]:
        """Return the index of each value, (N,) int32; -1 where the id is unknown."""
        if isinstance(values, np.ndarray) and values.dtype.kind == "U":
            texts = values
        else:
            texts = np.array([str(value) for value in values], dtype=np.str_)
        if not len(self):
            return np.full(len(texts), -1, dtype=np.int32)
        position = np.searchsorted(self.ids, texts)
        position = np.minimum(position, len(self.ids) - 1)
        return np.where(self.ids[position] == texts, position, -1).astype(np.int32)
