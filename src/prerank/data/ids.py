"""Raw ids to indices, at the border of the package."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prerank.errors import DataError
from prerank.vocabulary import Vocabulary


def vocabulary(columns: list[pl.Series]) -> Vocabulary:
    """Return the vocabulary of all ids in ``columns``, each read as text."""
    texts = [column.unique().cast(pl.String).drop_nulls() for column in columns]
    joined = pl.concat(texts).unique().sort()
    return Vocabulary(np.asarray(joined.to_numpy(), dtype=np.str_))


def indices(values: pl.Series, vocabulary: Vocabulary, where: str) -> NDArray[np.int32]:
    """Return the index of each id, (N,) int32; raise DataError naming the first unknown one."""
    distinct = values.unique()
    found = vocabulary.lookup(np.asarray(distinct.cast(pl.String).to_numpy(), dtype=np.str_))
    if (found < 0).any():
        unknown = distinct.filter(pl.Series(found < 0))
        row = int(values.is_in(unknown.implode()).arg_max() or 0)
        raise DataError(
            f"{where} name an id that the catalog does not have",
            where=f"{where} -> {values.name}, row {row + 1}",
            must="an id of the items table",
            got=repr(values[row]),
            hint=f"{len(unknown)} ids are unknown; add them to the items or drop the rows",
        )
    if not len(values):
        return np.zeros(0, dtype=np.int32)
    index = values.replace_strict(distinct, pl.Series(found), return_dtype=pl.Int32)
    return index.to_numpy().astype(np.int32)
