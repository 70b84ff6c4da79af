"""Raw features of a user or an item -> rows of the tables its tower reads, without torch.

The same arithmetic as training's feature tables. Every value of every feature has a code; a
feature's ``start`` stands for missing and for values never seen in training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prerank.errors import DataError

Tables = Mapping[str, NDArray[Any]]
"""Table name -> (1, ...) rows: an input of a graph each."""


@dataclass(frozen=True)
class Categorical:
    """A feature of one value out of many; category k has code start + 1 + k."""

    name: str
    start: int


@dataclass(frozen=True)
class Bucketised:
    """A number read as a category: the number of ``edges`` that do not exceed it."""

    name: str
    start: int
    edges: tuple[float, ...]


@dataclass(frozen=True)
class Numeric:
    """A number, standardised as (value - mean) / std.

    A missing one raises a flag if ``flagged``: if training met missing ones.
    """

    name: str
    mean: float
    std: float
    flagged: bool = True


@dataclass(frozen=True)
class Listed:
    """A multi-valued feature (its first values count) or a sequence (its last ones)."""

    name: str
    start: int
    width: int
    ordered: bool


@dataclass(frozen=True)
class Vector:
    """A given embedding of ``dim`` numbers, divided by ``scale``; ``flagged`` as a number."""

    name: str
    dim: int
    scale: float
    flagged: bool = True


@dataclass(frozen=True)
class FeatureSchema:
    """All features of users or of items, in the order of the tower's tables.

    Attributes:
        codes: feature -> value -> code, of categorical features and lists.
    """

    categorical: tuple[Categorical, ...]
    bucketised: tuple[Bucketised, ...]
    numeric: tuple[Numeric, ...]
    lists: tuple[Listed, ...]
    vectors: tuple[Vector, ...]
    codes: Mapping[str, Mapping[str, int]]

    @classmethod
    def of(cls, about: Mapping[str, Any], categories: pl.DataFrame) -> FeatureSchema:
        """Build it from schema.json and the rows (feature, value, code) of the categories."""
        codes: dict[str, dict[str, int]] = {}
        columns = (categories[name].to_list() for name in ("feature", "value", "code"))
        for name, value, code in zip(*columns, strict=True):
            codes.setdefault(name, {})[value] = code
        return cls(
            tuple(Categorical(**c) for c in about["categorical"]),
            tuple(
                Bucketised(b["name"], b["start"], tuple(b["edges"])) for b in about["bucketised"]
            ),
            tuple(Numeric(**n) for n in about["numeric"]),
            tuple(Listed(**v) for v in about["lists"]),
            tuple(Vector(**v) for v in about["vectors"]),
            codes,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """All features by name."""
        kinds = (self.categorical, self.bucketised, self.numeric, self.lists, self.vectors)
        return tuple(feature.name for kind in kinds for feature in kind)

    def row(self, raw: Mapping[str, object]) -> Tables:
        """Return the tables' rows of one user or item.

        What ``raw`` leaves out or sets to None is missing; so is a category never seen in
        training.

        Raises:
            DataError: an unknown feature, a wrong type, NaN or infinity.
        """
        known = set(self.names)
        for name in raw:
            if name not in known:
                must = ", ".join(sorted(known)) or "no features at all"
                raise DataError(
                    "unknown feature", where=f"features.{name[:80]}", must=f"one of: {must}"
                )
        codes = [self._code(c.name, c.start, raw.get(c.name)) for c in self.categorical]
        codes += [_bucket(b, raw.get(b.name)) for b in self.bucketised]
        values = [_standardised(n, raw.get(n.name)) for n in self.numeric]
        missing = [float(n.flagged and raw.get(n.name) is None) for n in self.numeric]
        return {
            "codes": np.array([codes], dtype=np.int32),
            "numeric": np.array([values + missing], dtype=np.float32),
            **dict(self._list_rows(raw)),
            **{
                f"vectors_{k}_given": _scaled(vector, raw.get(vector.name))
                for k, vector in enumerate(self.vectors)
            },
        }

    def stored(self, raw: Mapping[str, object]) -> tuple[Tables, tuple[DataError, ...]]:
        """Return the rows of a stored record, and what is wrong with it.

        The record may be of another bundle's time: features unknown here are passed over, and one
        that does not fit is missing.
        """
        known = {name: raw[name] for name in self.names if name in raw}
        try:
            return self.row(known), ()
        except DataError:
            unfit = {name: error for name in known if (error := self._unfit(name, raw[name]))}
        fit = {name: value for name, value in known.items() if name not in unfit}
        return self.row(fit), tuple(unfit.values())

    def _unfit(self, name: str, value: object) -> DataError | None:
        try:
            self.row({name: value})
        except DataError as error:
            return error
        return None

    def _code(self, name: str, start: int, value: object) -> int:
        if value is None:
            return start
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)  # logs may hold categories as integers: training read their text
        if not isinstance(value, str):
            raise _wrong_type(name, "text, a whole number or null", value)
        return self.codes.get(name, {}).get(value, start)

    def _list_rows(self, raw: Mapping[str, object]) -> Iterator[tuple[str, NDArray[Any]]]:
        for k, listed in enumerate(self.lists):
            values = raw.get(listed.name)
            if values is None:
                values = []
            if not isinstance(values, list):
                raise _wrong_type(listed.name, "a list of texts or whole numbers, or null", values)
            # A value never seen is left out: training's lists hold known values only.
            every = [self._code(listed.name, listed.start, value) for value in values]
            seen = [code for code in every if code != listed.start]
            if not listed.ordered:  # training reads each value of a set once
                seen = list(dict.fromkeys(seen))
            kept = seen[-listed.width :] if listed.ordered else seen[: listed.width]
            codes = np.full((1, listed.width), listed.start, dtype=np.int32)
            codes[0, : len(kept)] = kept
            inside = np.zeros((1, listed.width), dtype=np.bool_)
            inside[0, : max(len(kept), 1)] = True  # an empty list reads what stands for missing
            yield f"lists_{k}_codes", codes
            yield f"lists_{k}_inside", inside


def _wrong_type(name: str, must: str, value: object) -> DataError:
    return DataError(
        "wrong type of a feature",
        where=f"features.{name}",
        must=must,
        got=type(value).__name__,
    )


def _number(name: str, value: object) -> float:
    """Return a finite number of float32's range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(name, "a number or null", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not abs(number) <= float(np.finfo(np.float32).max):  # NaN fails too
        raise DataError(
            "a feature is not finite",
            where=f"features.{name}",
            must="a finite number of float32's range, or null (= missing)",
        )
    return number


def _standardised(number: Numeric, value: object) -> float:
    if value is None:
        return 0.0
    scaled = (_number(number.name, value) - number.mean) / number.std
    limit = float(np.finfo(np.float32).max)
    return min(max(scaled, -limit), limit)


def _bucket(feature: Bucketised, value: object) -> int:
    if value is None:
        return feature.start
    number = np.float32(_number(feature.name, value))
    return feature.start + 1 + int(np.searchsorted(feature.edges, number, side="right"))


def _scaled(vector: Vector, value: object) -> NDArray[Any]:
    given = np.zeros((1, vector.dim + 1), dtype=np.float32)
    if value is None:
        given[0, -1] = vector.flagged
        return given
    must = f"{vector.dim} numbers, or null"
    if not isinstance(value, list):
        raise _wrong_type(vector.name, must, value)
    if len(value) != vector.dim:
        raise DataError("wrong length of a vector", where=f"features.{vector.name}", must=must)
    numbers = [_number(vector.name, one) for one in value]
    given[0, :-1] = np.asarray(numbers, np.float32) / np.float32(vector.scale)
    return given
