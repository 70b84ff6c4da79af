"""What early stopping watches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prerank.artifacts import (
    UNKNOWN_CLICK,
    VALIDATION,
    ByteArray,
    Dataset,
    FloatArray,
    IntArray,
    TimeArray,
)
from prerank.data.auc import auc, grouped_auc
from prerank.errors import ConfigError

MIN_USERS = 30  # users with both classes below which a mean of AUCs is mostly noise


@dataclass(frozen=True, eq=False)
class ValidationRows:
    """Rows with known clicks that training never learns from.

    Attributes:
        user, item: (N,) int32.
        time: (N,) int64.
        click: (N,) int8, 0 or 1.
    """

    user: IntArray
    item: IntArray
    time: TimeArray
    click: ByteArray

    def __len__(self) -> int:
        return len(self.user)


def validation_rows(dataset: Dataset, source: str) -> ValidationRows:
    """Return the rows of ``source``: ``exposures`` (the logged ones) or a pool's name.

    Raises:
        ConfigError: there is no such pool.
    """
    if source == "exposures":
        log = dataset.exposures
        keep = (log.split == VALIDATION) & (log.click != UNKNOWN_CLICK)
        return ValidationRows(log.user[keep], log.item[keep], log.time[keep], log.click[keep])
    pools = dataset.pools
    if source not in pools.pools:
        raise ConfigError(
            "no such validation pool",
            where="train.validation",
            must=" or ".join(("exposures", *pools.pools)),
            got=source,
        )
    keep = (pools.split == VALIDATION) & (pools.pool == pools.pools.index(source))
    return ValidationRows(pools.user[keep], pools.item[keep], pools.time[keep], pools.click[keep])


def quality(rows: ValidationRows, logit: FloatArray) -> dict[str, float | None]:
    """Return ``gauc`` (by user), ``auc`` and ``log_loss`` of the scores; None where undefined.

    Args:
        rows: what was scored.
        logit: (N,) float32.
    """
    if not len(rows):
        return {"gauc": None, "auc": None, "log_loss": None}
    by_user, _ = grouped_auc(rows.user, rows.click, logit)
    known = by_user[~np.isnan(by_user)]
    total = auc(rows.click, logit)
    margin = np.where(rows.click == 1, logit, -logit).astype(np.float64)
    return {
        "gauc": float(known.mean()) if len(known) >= MIN_USERS else None,
        "auc": None if np.isnan(total) else total,
        "log_loss": float(np.logaddexp(0, -margin).mean()),
    }


def selection(found: Mapping[str, Any]) -> float | None:
    """Return what must rise: GAUC, or AUC where too few users have both classes, or None.

    Ranking decides, not the log loss: pseudo-labels move the base rate on purpose.
    """
    value: float | None = found["auc"] if found["gauc"] is None else found["gauc"]
    return value
