"""Features of users or items as arrays a model can gather from.

The last row of every table describes the unknown user or item (index -1 outside): every feature
is missing. All values of all features share one range of codes and so one embedding table; the
first code of each feature means missing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import CodeLists, Features, FloatArray, IntArray
from prerank.ranking.config import TrainConfig


@dataclass(frozen=True, eq=False)
class ListTable:
    """A multi-valued or sequence feature, padded.

    Attributes:
        name: of the feature.
        codes: (R + 1, M) int32; a list ends where ``missing`` begins.
        missing: the code that stands for nothing.
        ordered: whether the order means something: oldest first.
    """

    name: str
    codes: IntArray
    missing: int
    ordered: bool

    @property
    def inside(self) -> NDArray[np.bool_]:
        """(R + 1, M): which codes are read; of an empty list ``missing``, once."""
        inside: NDArray[np.bool_] = self.codes != self.missing
        inside[:, 0] |= ~inside.any(axis=1)
        return inside

    @classmethod
    def of(cls, name: str, lists: CodeLists, start: int, max_values: int) -> ListTable:
        """Pad ``lists`` to at most ``max_values``: the first of a set, the last of a sequence."""
        size = np.diff(lists.offsets)
        taken = np.minimum(size, max_values)
        width = max(int(taken.max(initial=0)), 1)
        first = lists.offsets[1:] - taken if lists.ordered else lists.offsets[:-1]
        column = np.arange(width)
        inside = column < taken[:, None]
        codes = np.full((len(lists) + 1, width), start, dtype=np.int32)
        codes[:-1][inside] = lists.codes[(first[:, None] + column)[inside]] + 1 + start
        return cls(name, codes, start, lists.ordered)


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Features of users or items, ready for a model.

    Attributes:
        names: of the columns of ``codes``.
        codes: (R + 1, F) int32 code + 1, 0 = missing, shifted so that each feature has its own
            range of one common embedding table.
        n_codes: rows of that table.
        numeric: (R + 1, 2 G) float32: standardised values (0 = missing), then missing flags; the
            unknown row raises those that some other row raises.
        lists: multi-valued and sequence features.
        vectors: name -> (R + 1, D + 1) float32 given embedding of about unit coordinates (0 =
            missing), then a missing flag, as with numbers.
    """

    names: tuple[str, ...]
    codes: IntArray
    n_codes: int
    numeric: FloatArray
    lists: tuple[ListTable, ...] = ()
    vectors: tuple[tuple[str, FloatArray], ...] = ()

    @classmethod
    def of(cls, features: Features, config: TrainConfig, seen: NDArray[np.bool_]) -> FeatureTable:
        """Encode ``features``; columns in the order of their names.

        Args:
            features: of R users or items.
            config: how numbers are read and how long lists may be.
            seen: (R,) those that stand in training; quantiles are taken over them.
        """
        columns: list[IntArray] = []
        names, start = [], 0

        def add(name: str, codes: IntArray, n_values: int) -> None:
            nonlocal start
            columns.append(np.append(codes + 1, np.int32(0)).astype(np.int32) + np.int32(start))
            names.append(name)
            start += n_values + 1

        for name in sorted(features.categorical):
            add(name, features.categorical[name], len(features.categories[name]))
        numbers = sorted(features.numeric)
        if config.numeric == "buckets":
            for name in numbers:
                add(name, *bucketised(features.numeric[name], seen, config.n_buckets))
            numbers = []
        lists = []
        for name in sorted(features.lists):
            lists.append(ListTable.of(name, features.lists[name], start, config.max_values))
            start += len(features.categories[name]) + 1
        codes = np.stack(columns, axis=1) if columns else np.zeros((features.n_rows + 1, 0), "i4")
        vectors = tuple(
            (name, _scaled(features.vectors[name])) for name in sorted(features.vectors)
        )
        numeric = _normalised([features.numeric[name] for name in numbers], features.n_rows)
        return cls(tuple(names), codes, start, numeric, tuple(lists), vectors)

    def __len__(self) -> int:
        return len(self.codes) - 1


def bucketised(values: FloatArray, seen: NDArray[np.bool_], n_buckets: int) -> tuple[IntArray, int]:
    """Return (R,) int32 quantile bucket of each value, -1 where missing, and their number.

    Args:
        values: (R,) float32, NaN where missing.
        seen: (R,) whose values the quantiles are taken over; all where none has a value.
        n_buckets: wanted; fewer where values repeat.
    """
    known, edges = ~np.isnan(values), bucket_edges(values, seen, n_buckets)
    bucket = np.searchsorted(edges, values, side="right")
    return np.where(known, bucket, -1).astype(np.int32), len(edges) + 1


def bucket_edges(
    values: FloatArray, seen: NDArray[np.bool_], n_buckets: int
) -> NDArray[np.float64]:
    """Return the rising borders of the quantile buckets, fewer than ``n_buckets``.

    A value falls into the bucket whose number is how many borders do not exceed it.
    """
    known = ~np.isnan(values)
    train = values[known & seen] if (known & seen).any() else values[known]
    cuts = np.linspace(0, 1, n_buckets + 1)[1:-1]
    return np.unique(np.quantile(train, cuts)) if len(train) else np.zeros(0)


def _normalised(columns: list[FloatArray], n_rows: int) -> FloatArray:
    numeric = np.zeros((n_rows + 1, 2 * len(columns)), dtype=np.float32)
    for column, values in enumerate(columns):
        value = _standardised(values)
        numeric[:-1, column] = np.nan_to_num(value)
        numeric[:-1, len(columns) + column] = np.isnan(value)
    # Where nobody raises a flag, nothing teaches what it means: the unknown is then as the mean,
    # and not moved by weights that never learned.
    numeric[-1, len(columns) :] = numeric[:-1, len(columns) :].any(axis=0)
    return numeric


def _standardised(values: FloatArray) -> NDArray[np.float64]:
    known = values[~np.isnan(values)].astype(np.float64)
    if not len(known) or known.std() == 0:
        return values - (known.mean() if len(known) else 0.0)
    return np.asarray((values - known.mean()) / known.std())


def _scaled(vectors: FloatArray) -> FloatArray:
    missing = np.isnan(vectors).all(axis=1)
    scaled = np.zeros((len(vectors) + 1, vectors.shape[1] + 1), dtype=np.float32)
    scaled[:-1, -1] = missing
    scaled[-1, -1] = missing.any()  # as with numbers
    known = vectors[~missing]
    size = float(np.sqrt(np.mean(np.square(known, dtype=np.float64)))) if known.size else 0.0
    scaled[:-1, :-1][~missing] = known / (size or 1.0)
    return scaled
