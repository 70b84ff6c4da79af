"""Exposures for logs of positives only: every positive beside simulated negatives."""

from __future__ import annotations

import numpy as np
import polars as pl

from prerank.data.ids import indices, vocabulary
from prerank.data.negatives import popularity_weights, with_negatives
from prerank.data.unexposed import pair_keys, sorted_unique


def simulated_exposures(
    positives: pl.DataFrame,
    known: pl.DataFrame,
    items: pl.Series,
    n: int,
    power: float,
    generator: np.random.Generator,
) -> pl.DataFrame:
    """Return the positives, each with ``n`` negatives of the same user, moment and request.

    Negatives are drawn by (rows of the item in ``positives`` + 1) ** power and are never an item
    that the user has in ``known``. No item was in truth shown and passed over: say so in notes.

    Args:
        positives: ``user``, ``item`` and any columns that negatives copy.
        known: ``user``, ``item``: all the users' positives, held-out ones too.
        items: all item ids.
        n: negatives a positive.
        power: of popularity.
        generator: random numbers.

    Returns:
        The columns of ``positives`` plus ``request`` (int64, one a positive) and ``click``.
    """
    users, catalog = vocabulary([known["user"], positives["user"]]), vocabulary([items])
    item = indices(positives["item"], catalog, "positives")
    met = pair_keys(
        indices(known["user"], users, "known"), indices(known["item"], catalog, "known")
    )
    rows = with_negatives(
        {"user": indices(positives["user"], users, "positives"), "item": item},
        sorted_unique(met),
        popularity_weights(item, len(catalog), power),
        n,
        generator,
    )
    names = pl.Series("item", catalog.ids.astype(object).tolist(), dtype=pl.String)
    copied = positives.drop("item")[rows["row"]]
    return copied.with_columns(
        names[rows["item"]],
        pl.Series("request", rows["row"]),
        pl.Series("click", rows["click"]),
    )
