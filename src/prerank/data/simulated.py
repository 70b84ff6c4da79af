"""Exposures for logs of positives only: every positive beside simulated negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import TEST, TRAIN, VALIDATION, ByteArray
from prerank.data.negatives import popularity_weights, with_negatives
from prerank.data.unexposed import pair_keys, sorted_unique


@dataclass(frozen=True)
class Negatives:
    """What to put beside each positive of a log without any negative.

    Attributes:
        n: negatives a positive.
        power: they are drawn by (positives of the item in training + 1) ** power.
    """

    n: int
    power: float

    def note(self) -> str:
        """Return what a reader of results must know: no item was in truth passed over."""
        return (
            f"positives only: exposures are simulated, {self.n} negatives a positive drawn by "
            f"(its interactions in training + 1)^{self.power:g}, never an item that the user had "
            "by the end of that period"
        )


def simulated_exposures(
    positives: dict[str, NDArray[Any]],
    liked: dict[str, NDArray[Any]],
    period: ByteArray,
    n_items: int,
    wanted: Negatives,
    generator: np.random.Generator,
) -> dict[str, NDArray[Any]]:
    """Return the positives, each with negatives of the same user, moment, request and period.

    A negative is no item that the user has up to the period of the positive. Later ones may be
    drawn: where none is, "was no negative in training" tells who is clicked in a test.

    Args:
        positives: ``user``, ``item`` (N,) int32 and any columns that negatives copy.
        liked: ``user``, ``item``: positives of training that are no rows here.
        period: (N,) int8 TRAIN, VALIDATION or TEST.
        n_items: I.
        wanted: how many and how drawn.
        generator: random numbers.

    Returns:
        The columns of ``positives``, ``click`` and ``split`` (M,) int8; by period.
    """
    weights = popularity_weights(positives["item"][period == TRAIN], n_items, wanted.power)
    key = pair_keys(positives["user"], positives["item"])
    before = pair_keys(liked["user"], liked["item"])
    parts = []
    for now in (TRAIN, VALIDATION, TEST):
        met = sorted_unique(np.concatenate([before, key[period <= now]]))
        rows = {name: values[period == now] for name, values in positives.items()}
        rows["split"] = period[period == now]
        parts.append(with_negatives(rows, met, weights, wanted.n, generator))
    names = [name for name in parts[0] if name != "row"]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}
