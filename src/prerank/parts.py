"""Tables larger than memory: a dataset in parts, each of a range of users.

A part is a `Dataset` of its own: the events of its users, who are counted from 0 in it. All that is
decided by user (histories, unexposed pairs, matches) is decided inside a part; what is counted over
all users is summed over the parts. docs/decisions/0009-parts.md says why.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prerank import artifacts as a
from prerank.store import (
    ANCHOR_COLUMNS,
    StoredArray,
    anchors_file,
    map_rows,
    part_file,
    save_but_tables,
    stored_arrays,
    table_files,
    write_json,
    write_table,
    writing,
)
from prerank.vocabulary import Vocabulary

PART_ROWS = 4_000_000
"""Rows of events in a part, about; a log of no more than this is one whole."""
COPY_BYTES = 1 << 24


@dataclass(frozen=True, eq=False)
class DatasetParts:
    """A prepared dataset, read part by part.

    Attributes:
        path: the artifact's folder.
        about: what ``dataset.json`` says.
        items: of the whole dataset.
        bounds: (P + 1,) int64; part p has the users ``bounds[p]:bounds[p + 1]``.
    """

    path: Path
    about: Mapping[str, Any]
    items: Vocabulary
    bounds: a.TimeArray

    @classmethod
    def open(cls, path: Path) -> DatasetParts | None:
        """Return the dataset in ``path``; None if it was written as one whole."""
        about = json.loads((path / "dataset.json").read_text())
        if "parts" not in about:
            return None
        items = pl.read_parquet(path / "items.parquet", columns=["id"])["id"]
        return cls(path, about, Vocabulary(texts(items)), np.array(about["parts"], np.int64))

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def n_users(self) -> int:
        """Users of all parts."""
        return int(self.bounds[-1])

    @property
    def cuts(self) -> a.Cuts:
        """The moments that separate what may be known when."""
        return a.Cuts(**self.about["cuts"])

    def scan(self, name: str) -> pl.LazyFrame:
        """Return a table of all parts as a query; users are those of the whole."""
        return pl.scan_parquet(table_files(self.path, name))

    def __iter__(self) -> Iterator[a.Dataset]:
        return (self.part(p) for p in range(len(self)))

    def part(self, p: int) -> a.Dataset:
        """Return part ``p``: its users from 0, no features, texts or pools."""
        first, end = int(self.bounds[p]), int(self.bounds[p + 1])

        def columns(name: str) -> dict[str, NDArray[Any]]:
            frame = pl.read_parquet(part_file(self.path, name, p))
            found = {column: frame[column].to_numpy(writable=True) for column in frame.columns}
            found["user"] -= np.int32(first)
            return found

        ids = pl.scan_parquet(self.path / "users.parquet").slice(first, end - first)
        return replace(
            blank(self.about["name"], "ms", Vocabulary(texts(ids.collect()["id"])), self.items),
            exposures=a.Exposures(**columns("exposures")),
            candidates=a.Candidates(**columns("candidates"), stages=tuple(self.about["stages"])),
            interactions=a.Interactions(**columns("interactions")),
            cuts=self.cuts,
            notes=tuple(self.about["notes"]),
        )


def texts(values: pl.Series) -> NDArray[np.str_]:
    """Return text as a unicode array."""
    return np.asarray(values.to_numpy(), dtype=np.str_)


def blank(name: str, unit: a.TimeUnit, users: Vocabulary, items: Vocabulary) -> a.Dataset:
    """Return a dataset without events, texts and features."""
    whole, byte, index = np.zeros(0, np.int64), np.zeros(0, np.int8), np.zeros(0, np.int32)
    number = np.zeros(0, np.float32)
    nothing = np.full(len(items), "", dtype=object)
    return a.Dataset(
        name=name,
        time_unit=unit,
        users=users,
        items=items,
        user_features=a.Features(len(users)),
        catalog=a.Catalog(nothing, nothing, a.Features(len(items))),
        exposures=a.Exposures(whole, index, index, whole, byte, index, number, byte),
        candidates=a.Candidates(whole, index, index, whole, byte, number, number),
        interactions=a.Interactions(index, index, whole),
        pools=a.Pools(np.zeros(0, np.int16), byte, whole, index, index, whole, byte, ()),
    )


class PartsWriter:
    """Writes a dataset part by part into the folder ``path``."""

    def __init__(self, path: Path, bounds: a.TimeArray) -> None:
        self.path, self.bounds = path, bounds
        self.n_pools = 0

    def write(self, p: int, part: a.Dataset) -> None:
        """Write the tables of part ``p``; its users are counted from 0."""
        for name in ("exposures", "candidates", "interactions"):
            columns = dict(getattr(part, name).columns())
            columns["user"] = columns["user"] + np.int32(self.bounds[p])
            write_table(part_file(self.path, name, p), columns)
        columns = dict(part.pools.columns())
        columns["user"] = columns["user"] + np.int32(self.bounds[p])
        self.write_pools(columns)

    def write_pools(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Append rows to the pools; users are those of the whole."""
        write_table(part_file(self.path, "pools", self.n_pools), columns)
        self.n_pools += 1

    def finish(self, dataset: a.Dataset) -> None:
        """Write all but the tables."""
        save_but_tables(self.path, dataset, self.bounds)


# ---- anchors ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class StoredAnchors:
    """Interest anchors of all users in a file, read a range of users at a time.

    Attributes:
        source: as of `InterestAnchors`.
        arrays: the file's arrays.
        points: (P, D) float32 of all users, mapped into memory.
    """

    source: str
    arrays: Mapping[str, StoredArray]
    points: a.FloatArray

    @classmethod
    def open(cls, path: Path) -> StoredAnchors:
        """Return the anchors of an artifact's folder; ArtifactError if an older prerank's."""
        source = json.loads((path / "anchors.json").read_text())["source"]
        file = anchors_file(path)
        return cls(source, stored_arrays(file), map_rows(file, "points"))

    @property
    def n_users(self) -> int:
        """Number of users, U."""
        return self.arrays["offsets"].shape[0] - 1

    @property
    def dim(self) -> int:
        """Dimensions of the points, D."""
        return int(self.points.shape[1])

    def of_users(self, first: int, end: int) -> tuple[a.InterestAnchors, int]:
        """Return the anchors of the users ``first:end``, counted from 0; and their first row."""
        offsets = self.arrays["offsets"].rows(first, end + 1)
        start, stop = int(offsets[0]), int(offsets[-1])
        rows = {name: self.arrays[name].rows(start, stop) for name in ANCHOR_COLUMNS}
        found = a.InterestAnchors(
            offsets=offsets - start, **rows, points=self.points, source=self.source
        )
        return found, start


def save_anchors(
    path: Path, parts: Iterator[a.InterestAnchors], points: a.FloatArray, work: Path
) -> None:
    """Write the anchors of users after users as one artifact: the arrays of their `compact`.

    Args:
        path: the artifact's folder.
        parts: anchors of the users of each part, in order.
        points: (P, D) float32, the table of every part.
        work: a folder for the arrays before their sizes are known.

    Raises:
        DataError: a part has another table of points.
    """
    names = ("offsets", *ANCHOR_COLUMNS, "points")
    sizes = dict.fromkeys(names, 0)
    inner: dict[str, tuple[int, ...]] = {}
    kinds: dict[str, np.dtype[Any]] = {}
    n_anchors, source = 0, ""
    raw = {name: work / f"{name}.raw" for name in names}
    for file in raw.values():
        file.unlink(missing_ok=True)

    def append(name: str, values: NDArray[Any]) -> None:
        sizes[name] += len(values)
        inner[name], kinds[name] = values.shape[1:], values.dtype
        with writing(raw[name]), raw[name].open("ab") as out:
            out.write(np.ascontiguousarray(values).data)

    named = np.zeros(len(points), bool)
    for part in parts:
        a.require(
            part.points is points,
            "parts of anchors are of different points",
            where="InterestAnchors.points",
            must="the one table that all parts share",
        )
        source = part.source
        append("offsets", part.offsets[0 if sizes["offsets"] == 0 else 1 :] + n_anchors)
        for name in ANCHOR_COLUMNS:
            append(name, getattr(part, name))
        n_anchors += len(part.point)
        named[part.point] = True
    _renumber(raw["point"], a.rows_left(named))
    for some in np.array_split(np.flatnonzero(named), 1 + len(points) // a.GATHERED_ROWS):
        append("points", points[some])
    shapes = {name: (sizes[name], *inner[name]) for name in names}
    _join_arrays(path / "anchors.safetensors", raw, shapes, kinds, {"source": source})
    for file in raw.values():
        file.unlink()
    write_json(path / "anchors.json", {"source": source})


def _renumber(file: Path, place: a.IntArray) -> None:
    """Replace every number in a file of int32 by its ``place``, a piece at a time."""
    with writing(file), file.open("r+b") as both:
        while len(rows := np.fromfile(both, np.int32, COPY_BYTES // 4)):
            both.seek(-rows.nbytes, os.SEEK_CUR)
            both.write(place[rows].data)


def _join_arrays(
    file: Path,
    raw: Mapping[str, Path],
    shapes: Mapping[str, tuple[int, ...]],
    kinds: Mapping[str, np.dtype[Any]],
    about: Mapping[str, str],
) -> None:
    """Write a safetensors file of arrays whose bytes lie in files of their own."""
    names = {np.dtype(np.float32): "F32", np.dtype(np.int32): "I32", np.dtype(np.int64): "I64"}
    # Larger elements first, so that each array starts at a multiple of its element's size.
    order = sorted(raw, key=lambda name: (-kinds[name].itemsize, name))
    head: dict[str, Any] = {"__metadata__": dict(about)}
    at = 0
    for name in order:
        size = raw[name].stat().st_size
        head[name] = {
            "dtype": names[kinds[name]],
            "shape": list(shapes[name]),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with writing(file), file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            with raw[name].open("rb") as source:
                shutil.copyfileobj(source, out, COPY_BYTES)
