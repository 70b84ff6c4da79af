"""From counts to a table: means over replications, paired lifts, intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from prerank.simulation.measures import METRICS, Counts, rates

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over replications with its interval; None where it cannot be told.

    Attributes:
        value: the mean over the replications in which it is defined.
        low, high: Student's t interval; None with fewer than two replications.
        n: replications behind it.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Line:
    """One metric of one arm: its level, and its lift over the baseline in percent."""

    arm: str
    metric: str
    level: Estimate
    lift: Estimate | None


def estimate(values: Array, interval: float) -> Estimate:
    """Return the mean of ``values`` (R,) and its t interval; NaN values are left out."""
    known = values[~np.isnan(values)]
    if not len(known):
        return Estimate(None, None, None, 0)
    mean = float(known.mean())
    if len(known) < 2:
        return Estimate(mean, None, None, len(known))
    error = float(known.std(ddof=1)) / len(known) ** 0.5
    half = float(student.ppf(0.5 + interval / 2, len(known) - 1)) * error
    return Estimate(mean, mean - half, mean + half, len(known))


def values_of(
    days: Mapping[str, Sequence[Sequence[Counts]]], whole: Mapping[str, Sequence[Counts]]
) -> dict[str, dict[str, Array]]:
    """Return arm -> metric -> its value in each replication, (R,).

    Args:
        days: arm -> replication -> day -> counts.
        whole: arm -> replication -> counts of the whole test.
    """
    values = {}
    for arm in days:
        found = [rates(d, w) for d, w in zip(days[arm], whole[arm], strict=True)]
        values[arm] = {m: np.array([one[m] for one in found], np.float64) for m in METRICS}
    return values


def table(values: Mapping[str, Mapping[str, Array]], baseline: str, interval: float) -> list[Line]:
    """Return one line an arm and metric.

    A lift is 100 * (arm / baseline - 1) inside a replication, where both met the same luck; its
    interval is over replications.

    Args:
        values: what `values_of` returned.
        baseline: the arm lifts are relative to.
        interval: level.
    """
    lines = []
    for arm in values:
        for metric in METRICS:
            own, lift = values[arm][metric], None
            if arm != baseline and baseline in values:
                lift = _lift(own, values[baseline][metric], interval)
            lines.append(Line(arm, metric, estimate(own, interval), lift))
    return lines


def against(
    values: Mapping[str, Mapping[str, Array]], arms: Sequence[str], interval: float
) -> dict[str, dict[str, Estimate]]:
    """Return arm -> every other arm -> the lift over it in clicks per exposure; see `table`.

    Two intervals over a baseline that overlap tell nothing of two arms: they met the same luck.
    """
    ctr = {arm: values[arm]["ctr"] for arm in arms}
    return {
        arm: {other: _lift(ctr[arm], ctr[other], interval) for other in arms if other != arm}
        for arm in arms
    }


def _lift(own: Array, other: Array, interval: float) -> Estimate:
    with np.errstate(divide="ignore", invalid="ignore"):
        return estimate(np.where(other != 0, 100 * (own / other - 1), np.nan), interval)


def by_day(days: Sequence[Sequence[Counts]], interval: float) -> list[Estimate]:
    """Return the click rate of each day over replications (replication -> day -> counts)."""
    rate = np.array([[d["clicks"] / max(d["exposures"], 1.0) for d in one] for one in days])
    return [estimate(column, interval) for column in rate.T]


def as_json(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return lines as plain JSON values."""
    return [asdict(line) for line in lines]
