"""A bundle: all that scoring needs in one folder, made by `prerank export`.

    manifest.json                    kind, fingerprint, sha256 of every file; written last
    schema.json                      sizes, features, inputs and outputs of the graphs
    models/{user,item,scorer}/       config.pbtxt and 1/model.onnx: a Triton model repository
    items/item_part_N.PRECISION.npy  what the item tower says of every item; last row = unknown
    users/TABLE.npy                  the user tower's inputs of every user; last row = unknown
    vocabulary/{users,items}.parquet id and raw features of every user and item
    vocabulary/{users,items}.json    the ids alone, for what reads no Parquet
    vocabulary/history.npy           item rows of all histories end to end
    vocabulary/history_offsets.npy   where each user's begins; last row = unknown, none
    vocabulary/categories.parquet    the codes of categorical features
    parity.json precision.json latency.json README.md score.py

Reading one needs NumPy and polars; neither torch nor a web framework.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prerank.errors import ArtifactError, PrerankError, first_line
from prerank.serving.schema import FeatureSchema
from prerank.store import Manifest, read_manifest, verify

KIND = "export"
GRAPHS = ("user", "item", "scorer")
Precision = Literal["float32", "float16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8")
USERS, ITEMS = "vocabulary/users.parquet", "vocabulary/items.parquet"
HISTORY, OFFSETS = "vocabulary/history.npy", "vocabulary/history_offsets.npy"
CATEGORIES, SCHEMA = "vocabulary/categories.parquet", "schema.json"


def graph_file(graph: str) -> str:
    """Return the path of a graph inside a bundle."""
    return f"models/{graph}/1/model.onnx"


def part_file(part: int, precision: str) -> str:
    """Return the path of an item part inside a bundle."""
    return f"items/item_part_{part}.{precision}.npy"


def feature_column(name: str) -> str:
    """Return the column that holds a raw feature in the vocabularies."""
    return f"feature:{name}"


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn whatever a reader of a bundle's files throws into an ArtifactError.

    NumPy, polars, json and ONNX Runtime have classes of their own for it.
    """
    try:
        yield
    except PrerankError:
        raise
    except Exception as error:
        raise ArtifactError(
            "the bundle cannot be read",
            where=str(path),
            must="as `prerank export` wrote it",
            got=f"{type(error).__name__}: {first_line(error)[:200]}",
            hint="export the run again",
        ) from None


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle whose files were checked against their hashes.

    Attributes:
        path: its folder.
        manifest: what it is and where it came from.
        about: schema.json.
    """

    path: Path
    manifest: Manifest
    about: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Bundle:
        """Open and check the bundle at ``path``.

        Raises:
            ArtifactError: no bundle, another artifact, or a missing or damaged file.
        """
        path = path.resolve()  # a link that is moved later must not mix two bundles
        manifest = read_manifest(path)
        if manifest is None:
            raise ArtifactError(
                "no bundle here",
                where=str(path),
                must="a folder made by `prerank export`",
                hint="`prerank export RUN --out bundle/` makes one",
            )
        if manifest.kind != KIND or SCHEMA not in manifest.files:
            raise ArtifactError(
                "this is another artifact, no bundle",
                where=str(path),
                must="a folder made by `prerank export`",
                got=manifest.kind,
            )
        verify(path, manifest)
        with readable(path):
            return cls(path, manifest, json.loads((path / SCHEMA).read_text()))

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that name this bundle."""
        return self.manifest.fingerprint

    @cached_property
    def item_mark(self) -> int:
        """64 bits that name the item vocabulary: rows mean the same items while it is equal."""
        digest = hashlib.sha256(self.manifest.files[ITEMS].encode()).digest()
        return int.from_bytes(digest[:8], "little")

    @cached_property
    def users(self) -> pl.DataFrame:
        """The users: id, and one column a feature."""
        return pl.read_parquet(self.path / USERS)

    @cached_property
    def histories(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Item rows of all users' histories, and (U + 2,) where each begins; the unknown's last."""
        return np.load(self.path / HISTORY), np.load(self.path / OFFSETS)

    @cached_property
    def items(self) -> pl.DataFrame:
        """The items: id, and one column a feature."""
        return pl.read_parquet(self.path / ITEMS)

    @cached_property
    def user_tables(self) -> dict[str, NDArray[Any]]:
        """The tables of user features: name -> (U + 1, ...), the last row is the unknown user."""
        return {file.stem: np.load(file) for file in sorted((self.path / "users").glob("*.npy"))}

    def features(self, side: Literal["user", "item"]) -> FeatureSchema:
        """Return how raw features of users or items become inputs of their tower."""
        frame = pl.read_parquet(self.path / CATEGORIES).filter(pl.col("side") == side)
        return FeatureSchema.of(self.about["features"][side], frame)

    def item_part(
        self, part: int, precision: Precision
    ) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return a part's rows, (I + 1, ...), and their scales where they are int8."""
        kept = self.about["item_parts"][part]["precisions"]
        chosen = precision if precision in kept else kept[0]
        rows = np.load(self.path / part_file(part, chosen))
        if chosen != "int8":
            return rows, None
        return rows, np.load(self.path / part_file(part, "int8.scale"))
