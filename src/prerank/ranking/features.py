"""Features of users or items as arrays a model can gather from.

The last row of every table describes the unknown user or item (index -1 outside): every feature
is missing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import Features, FloatArray, IntArray
from prerank.ranking.config import TrainConfig


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Features of users or items, ready for a model.

    Attributes:
        names: of the columns of ``codes``.
        codes: (R + 1, F) int32 code + 1, 0 = missing, shifted so that each feature has its own
            range of one common embedding table.
        n_codes: rows of that table.
        numeric: (R + 1, 2 G) float32: standardised values (0 = missing), then missing flags.
    """

    names: tuple[str, ...]
    codes: IntArray
    n_codes: int
    numeric: FloatArray

    @classmethod
    def of(cls, features: Features, config: TrainConfig) -> FeatureTable:
        """Encode ``features``; columns in the order of their names."""
        names = sorted(features.categorical)
        codes = np.zeros((features.n_rows + 1, len(names)), dtype=np.int32)
        start = 0
        for column, name in enumerate(names):
            codes[:-1, column] = features.categorical[name] + 1
            codes[:, column] += start
            start += len(features.categories[name]) + 1
        values = [_standardised(features.numeric[name]) for name in sorted(features.numeric)]
        numeric = np.zeros((features.n_rows + 1, 2 * len(values)), dtype=np.float32)
        numeric[-1, len(values) :] = 1
        for column, value in enumerate(values):
            numeric[:-1, column] = np.nan_to_num(value)
            numeric[:-1, len(values) + column] = np.isnan(value)
        return cls(tuple(names), codes, start, numeric)

    def __len__(self) -> int:
        return len(self.codes) - 1


def _standardised(values: FloatArray) -> NDArray[np.float64]:
    known = values[~np.isnan(values)].astype(np.float64)
    if not len(known) or known.std() == 0:
        return values - (known.mean() if len(known) else 0.0)
    return np.asarray((values - known.mean()) / known.std())
