"""Two runs compared user by user.

Evaluation keeps what each test user adds to the metrics of every method (`UserValues`, a file
beside the report). Two runs that share users can then be compared on those: a difference paired by
user is far surer than one of two separate values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy.special import stdtr, stdtrit

from prerank.evaluation.significance import UserSums

FILE = "users.safetensors"
"""Lies beside the report. Reports made before it was kept lack it."""
Values = NDArray[np.float64]
OnMeasured = Callable[[str, str, NDArray[np.integer], Mapping[tuple[str, str], UserSums]], None]
"""Told pool, method, the pool's users (U,) and (segment, metric) -> sums over them."""


def _key(*parts: str) -> str:
    return json.dumps(parts)


@dataclass
class UserValues:
    """Collects what users add to metrics, to be written.

    Attributes:
        metrics: names of those that are kept.
    """

    metrics: Sequence[str]
    _arrays: dict[str, NDArray[np.generic]] = field(default_factory=dict)

    def add(
        self,
        pool: str,
        method: str,
        users: NDArray[np.integer],
        sums: Mapping[tuple[str, str], UserSums],
    ) -> None:
        """Keep one method's sums over the users of a pool, the mean over its training seeds."""
        self._arrays[_key("users", pool)] = users.astype(np.int32)
        for (segment, metric), one in sums.items():
            if metric in self.metrics and one.n:
                about = pool, segment, metric
                self._arrays[_key("den", *about)] = one.den.astype(np.float32)
                self._arrays[_key("num", method, *about)] = one.num.mean(0).astype(np.float32)
                self._arrays[_key("seeds", method, *about)] = one.values()

    def save(self, file: Path) -> None:
        """Write the file."""
        save_file({name: np.ascontiguousarray(of) for name, of in self._arrays.items()}, file)


@dataclass(frozen=True, eq=False)
class Kept:
    """What the users of a pool add to one metric of one method.

    Attributes:
        num: (U,) mean over training seeds; the metric is sum(num) / sum(den).
        den: (U,), 0 where the user has no value.
        seeds: (S,) the metric of each training seed.
    """

    num: Values
    den: Values
    seeds: Values

    def take(self, rows: NDArray[np.integer]) -> Kept:
        """Return the users of ``rows``."""
        return Kept(self.num[rows], self.den[rows], self.seeds)


def read_users(file: Path, pool: str) -> NDArray[np.int32] | None:
    """Return the users of a pool, indices of the run's dataset; None if none were kept."""
    with safe_open(file, framework="numpy") as tensors:
        name = _key("users", pool)
        found: NDArray[np.int32] | None = None
        if name in tensors.keys():  # noqa: SIM118 - no mapping
            found = tensors.get_tensor(name)
        return found


def read_kept(file: Path, method: str, pool: str, segment: str, metric: str) -> Kept | None:
    """Return what was kept of a method on a pool, segment and metric; None if nothing was."""
    with safe_open(file, framework="numpy") as tensors:
        about = pool, segment, metric
        if _key("num", method, *about) not in tensors.keys():  # noqa: SIM118 - no mapping
            return None
        num = tensors.get_tensor(_key("num", method, *about)).astype(np.float64)
        den = tensors.get_tensor(_key("den", *about)).astype(np.float64)
        return Kept(num, den, tensors.get_tensor(_key("seeds", method, *about)))


@dataclass(frozen=True)
class Paired:
    """One run minus another.

    Attributes:
        value: of the second minus that of the first, over the shared users.
        low, high: the interval.
        p: two-sided, of "there is no difference".
        n: users who have a value in both.
    """

    value: float
    low: float
    high: float
    p: float
    n: int


def paired(first: Kept, second: Kept, level: float) -> Paired | None:
    """Return ``second`` minus ``first`` over the same U users; None if fewer than 2 have values.

    The variance is that of the users' own differences, by the delta method for ratios of sums
    (Cochran 1977, section 2.13), plus those of the two means over training seeds. Degrees of
    freedom are Satterthwaite's (1946, doi 10.2307/3002019). One seed adds no variance: the
    interval then covers users only.
    """
    both = (first.den > 0) & (second.den > 0)
    n = int(both.sum())
    if n < 2:
        return None
    change, moved = 0.0, np.zeros(n)
    for one, sign in ((first, -1.0), (second, 1.0)):
        num, den = one.num[both], one.den[both]
        value = num.sum() / den.sum()
        change += sign * value
        moved += sign * (num - value * den) / den.mean()
    parts = [(float(moved.var(ddof=1)) / n, n - 1)]
    parts += [
        (float(of.seeds.var(ddof=1)) / len(of.seeds), len(of.seeds) - 1)
        for of in (first, second)
        if len(of.seeds) > 1
    ]
    variance = sum(v for v, _ in parts)
    if variance == 0:
        return Paired(change, change, change, float(change == 0), n)
    freedom = variance**2 / sum(v**2 / free for v, free in parts)
    half = float(stdtrit(freedom, (1 + level) / 2)) * variance**0.5
    p = 2 * float(stdtr(freedom, -abs(change) / variance**0.5))
    return Paired(change, change - half, change + half, min(1.0, p), n)
