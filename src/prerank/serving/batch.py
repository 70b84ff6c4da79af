"""Scores of a table of pairs, offline: the same rows in the same order, with a logit each.

    a chunk of rows -> ids to rows of the bundle -> by user, its graph run once -> back in order

The scorer is the server's, asked as the server asks it, so the logits are the server's. In memory
are the bundle and one chunk; what is scored lies in a folder beside the output until all of it is
there, and then becomes the output by one rename.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prerank.artifacts import FloatArray, IntArray
from prerank.data.tables import Rows, as_ids, complain, read_frame, scan_file, sound
from prerank.errors import ArtifactError, ConfigError, DataError
from prerank.progress import one_line, track
from prerank.serving.bundle import PRECISIONS, Bundle, Precision, readable
from prerank.serving.scorer import Scorer
from prerank.serving.users import Users
from prerank.store import writing

CHUNK_ROWS = 1 << 18
READ = (".parquet", ".feather", ".arrow", ".ipc", ".csv", ".tsv")
WRITTEN = (".parquet", ".csv")
LOGIT, KNOWN_USER, KNOWN_ITEM = ADDED = ("logit", "known_user", "known_item")


@dataclass(frozen=True)
class Columns:
    """What the columns of the table are called.

    Attributes:
        user, item: the ids.
        request: whose best rows are kept; empty: the user's.
    """

    user: str = "user"
    item: str = "item"
    request: str = ""

    @property
    def group(self) -> str:
        """The column whose equal values compete for a place among the best."""
        return self.request or self.user

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that must be there."""
        return (self.user, self.item, *([self.request] if self.request else []))


@dataclass(frozen=True)
class Scored:
    """What was done.

    Attributes:
        path: of the output.
        rows: scored.
        rows_written: less than ``rows`` where only the best were kept.
        users: distinct ones that the bundle knows.
        unknown_user_rows, unknown_item_rows: scored as the unknown user or item.
        seconds: from reading the bundle to the last byte.
        bundle: fingerprint of what scored.
        precision: of the item rows.
    """

    path: str
    rows: int
    rows_written: int
    users: int
    unknown_user_rows: int
    unknown_item_rows: int
    seconds: float
    bundle: str
    precision: Precision


def score_table(
    bundle: Path,
    pairs: Path,
    out: Path,
    columns: Columns | None = None,
    *,
    top_k: int | None = None,
    precision: str = "float32",
    chunk_rows: int = CHUNK_ROWS,
) -> Scored:
    """Write the table ``pairs`` with the columns logit, known_user and known_item to ``out``.

    Args:
        bundle: made by `prerank export`.
        pairs: a Parquet, Feather, CSV or TSV file, a folder of such files, or a glob.
        out: a .parquet or .csv file; an older one is replaced.
        columns: the names of the table's columns.
        top_k: rows kept of each request, or of each user; None: all. They keep their order, and of
            equal logits the earlier row stays.
        precision: of the item rows: float32, float16 or int8.
        chunk_rows: rows in memory at once.

    Raises:
        ConfigError: the output, the precision or the suffix of the table cannot be.
        DataError: the table is absent, unreadable or empty, lacks a column or an id.
        ArtifactError: there is no sound bundle, or the disk is full.
    """
    began, columns = time.monotonic(), columns or Columns()
    exact = _precision(precision)
    table = Pairs.open(pairs, columns)
    _check_output(out, table)
    scorer, users = _opened(bundle, exact)
    run = _Run(scorer, users, columns)
    parts: list[Path] = []
    with _folder_beside(out) as folder, writing(out):
        for file, first, n in track(table.chunks(chunk_rows), "score"):
            frame = run.scored(read_frame(file, rows=(first, n)), Rows(file, first))
            parts.append(folder / f"{len(parts):06d}.parquet")
            _best(frame, columns.group, top_k).write_parquet(parts[-1], compression="lz4")
        if top_k is not None and len(parts) > 1:
            _keep_best(parts, columns.group, top_k)
        rows_written = _join(parts, folder / out.name)
        (folder / out.name).replace(out)
    return Scored(
        path=str(out),
        rows=run.rows,
        rows_written=rows_written,
        users=int(run.seen_U.sum()),
        unknown_user_rows=run.unknown_user_rows,
        unknown_item_rows=run.unknown_item_rows,
        seconds=round(time.monotonic() - began, 3),
        bundle=scorer.bundle.fingerprint,
        precision=exact,
    )


def print_scored(found: Scored) -> None:
    """Print what `score_table` did, in a few lines."""
    kept = f", {found.rows_written:,} of them written" if found.rows_written < found.rows else ""
    print(
        f"{found.rows:,} rows of {found.users:,} known users scored in {found.seconds:.1f} s{kept}"
    )
    unknown = {"user": found.unknown_user_rows, "item": found.unknown_item_rows}
    for side, rows in unknown.items():
        if rows:
            print(f"{rows:,} rows name no {side} of the bundle: scored as the unknown {side}")
    print(f"scores: {one_line(found.path)}")


# ---- the table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """A table of pairs on disk.

    Attributes:
        files: in the order of their names.
        rows: how many each has.
        schema: the columns and types that all of them have.
    """

    files: tuple[Path, ...]
    rows: tuple[int, ...]
    schema: pl.Schema

    @classmethod
    def open(cls, place: Path, columns: Columns) -> Pairs:
        """Find the files at ``place`` and check what their headers tell; no row is read yet.

        Raises:
            ConfigError: no table has this suffix.
            DataError: as `score_table`.
        """
        files = _files(place)
        schemas = [_schema(file) for file in files]
        for file, schema in zip(files, schemas, strict=True):
            _check_columns(file, schema, columns)
            _check_same(file, schema, files[0], schemas[0])
        rows = tuple(_count(file) for file in files)
        if not sum(rows):
            raise DataError("the table has no rows", where=str(place), must="at least one row")
        return cls(files, rows, schemas[0])

    def chunks(self, size: int) -> list[tuple[Path, int, int]]:
        """Return file, first row and number of rows of each chunk, in order."""
        return [
            (file, first, min(size, n - first))
            for file, n in zip(self.files, self.rows, strict=True)
            for first in range(0, n, size)
        ]


def _files(place: Path) -> tuple[Path, ...]:
    """Return the files of a table: one, those of a folder, or those that a glob finds."""
    if place.is_dir():
        found = [file for file in place.iterdir() if file.suffix in READ and file.is_file()]
    elif any(mark in str(place) for mark in "*?[") and not place.exists():
        base = Path(place.anchor)
        found = [file for file in base.glob(str(place.relative_to(base))) if file.is_file()]
    else:
        found = [place]
    if not found:
        raise DataError(
            "there is no table here", where=str(place), must=f"files {', '.join(READ)}", got="none"
        )
    for file in found:
        if file.suffix not in READ:
            raise ConfigError(
                "the suffix of the table is unknown",
                where=str(file),
                must=", ".join(READ),
                got=file.suffix or "none",
            )
        if not file.is_file():
            raise DataError("the table is not there", where=str(file), must="a file or a folder")
    return tuple(sorted(found))


def _schema(file: Path) -> pl.Schema:
    with sound(file):
        return scan_file(file).collect_schema()


def _count(file: Path) -> int:
    with sound(file):
        return int(scan_file(file).select(pl.len()).collect().item())


def _check_columns(file: Path, schema: pl.Schema, columns: Columns) -> None:
    """Raise DataError unless the needed columns are there, and none that will be added."""
    for name in columns.needed:
        if name not in schema:
            raise DataError(
                f"column `{name}` is missing",
                where=f"{file} -> {name}",
                must=f"columns {', '.join(columns.needed)}",
                got=", ".join(schema)[:200],
                hint="name yours with --user-column, --item-column or --request-column",
            )
    for name in ADDED:
        if name in schema:
            raise DataError(
                f"column `{name}` is there already",
                where=f"{file} -> {name}",
                must=f"a table without {', '.join(ADDED)}, which are added",
                got=str(schema[name]),
                hint="rename or drop the column",
            )


def _check_same(file: Path, schema: pl.Schema, first: Path, wanted: pl.Schema) -> None:
    """Raise DataError unless a file has the columns of the first one, in any order."""
    names = [name for name in (*wanted, *schema) if wanted.get(name) != schema.get(name)]
    if names:
        raise DataError(
            "the files of the table differ",
            where=f"{file} -> {names[0]}",
            must=f"{wanted.get(names[0], 'absent')}, as in {first.name}",
            got=str(schema.get(names[0], "absent")),
            hint="write all files with the same columns and types",
        )


# ---- scores --------------------------------------------------------------------------------------


def _precision(name: str) -> Precision:
    for known in PRECISIONS:
        if name == known:
            return known
    raise ConfigError(
        "unknown precision", where="--precision", must=", ".join(PRECISIONS), got=name
    )


def _opened(path: Path, precision: Precision) -> tuple[Scorer, Users]:
    bundle = Bundle.read(path)
    with readable(path):
        scorer = Scorer(bundle, precision)
        return scorer, Users(bundle, scorer)


class _Run:
    """Scores chunk after chunk and counts.

    Attributes:
        rows, unknown_user_rows, unknown_item_rows: so far.
        seen_U: (U,) bool, whether a known user stood in a chunk.
    """

    def __init__(self, scorer: Scorer, users: Users, columns: Columns) -> None:
        self.scorer, self.users, self.columns = scorer, users, columns
        self.rows = self.unknown_user_rows = self.unknown_item_rows = 0
        self.seen_U = np.zeros(users.n_users, dtype=np.bool_)

    def scored(self, frame: pl.DataFrame, where: Rows) -> pl.DataFrame:
        """Return a chunk with the columns that are added: a float32 and two booleans.

        Raises:
            DataError: an id or a request is null, or ids are neither text nor integers.
        """
        user = as_ids(frame[self.columns.user], where)
        item = as_ids(frame[self.columns.item], where)
        if self.columns.request:
            asked = frame[self.columns.request]
            complain(asked, asked.is_null(), "a request is null", where, "a value in every row")
        users, user_N = distinct(user)
        items, item_N = distinct(item)
        row_N = self.scorer.item_rows(items).take(item_N)
        logit_N, known_N = self._logits(users, user_N, row_N)
        known_item_N = row_N < self.scorer.n_items
        self.rows += len(frame)
        self.unknown_user_rows += int((~known_N).sum())
        self.unknown_item_rows += int((~known_item_N).sum())
        return frame.with_columns(
            pl.Series(LOGIT, logit_N),
            pl.Series(KNOWN_USER, known_N),
            pl.Series(KNOWN_ITEM, known_item_N),
        )

    def _logits(
        self, users: list[str], user_N: IntArray, row_N: IntArray
    ) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Return the logit of each row, (N,) float32, and whether its user is known.

        Args:
            users: (K,) distinct ids of the chunk.
            user_N: (N,) int32 places in ``users``.
            row_N: (N,) int32 item rows, I = unknown.
        """
        logit_N, known_K = np.empty(len(row_N), np.float32), np.empty(len(users), np.bool_)
        order = np.argsort(user_N, kind="stable")
        borders = np.searchsorted(user_N[order], np.arange(len(users) + 1))
        for k, name in enumerate(track(users, "users")):
            rows, state = order[borders[k] : borders[k + 1]], self.users.state(name)
            logits = self.scorer.logits(state, row_N[rows])
            if not np.isfinite(logits).all():
                raise self._no_score(name)
            logit_N[rows] = logits
            known_K[k] = state.row < self.users.n_users
            if known_K[k]:
                self.seen_U[state.row] = True
        return logit_N, known_K[user_N]

    def _no_score(self, user: str) -> ArtifactError:
        return ArtifactError(
            "the bundle gives no finite score",
            where=f"{self.scorer.bundle.path}, user {user}",
            must="finite logits",
            hint="its features or weights are not finite: train and export again",
        )


def distinct(ids: pl.Series) -> tuple[list[str], IntArray]:
    """Return the distinct values, in the order of their first rows, and each row's place there.

    The places are (N,) int32.
    """
    values = ids.unique(maintain_order=True)
    place = pl.Series(np.arange(len(values), dtype=np.int32))
    found = ids.replace_strict(values, place, return_dtype=pl.Int32)
    return values.to_list(), found.to_numpy()


# ---- the best rows -------------------------------------------------------------------------------


def _is_best(group: str, k: int) -> pl.Expr:
    """Say of each row whether it is among the ``k`` best of its group; ties go to the earlier."""
    return (-pl.col(LOGIT)).rank("ordinal").over(group) <= k


def _best(frame: pl.DataFrame, group: str, k: int | None) -> pl.DataFrame:
    return frame if k is None else frame.filter(_is_best(group, k))


def _keep_best(parts: list[Path], group: str, k: int) -> None:
    """Rewrite the parts with the best of whole groups; so far each part has its own best.

    In memory are the groups and logits of what the parts have left, and one part.
    """
    left = pl.scan_parquet(parts).select(group, LOGIT).collect()
    best = left.select(_is_best(group, k)).to_series()
    first = 0
    for part in parts:
        frame = pl.read_parquet(part)
        mask = best.slice(first, len(frame))
        first += len(frame)
        if not mask.all():
            frame.filter(mask).write_parquet(part, compression="lz4")


# ---- the output ----------------------------------------------------------------------------------


def _check_output(out: Path, table: Pairs) -> None:
    """Raise before anything is scored if the output could not be written."""
    if out.suffix not in WRITTEN:
        raise ConfigError(
            "the suffix of the output is unknown",
            where="--out",
            must=" or ".join(WRITTEN),
            got=out.name,
        )
    if not out.parent.is_dir():
        raise ConfigError(
            "the folder of the output is not there",
            where=str(out.parent),
            must="a folder",
            hint=f"mkdir -p {out.parent}",
        )
    if out.is_dir():
        raise ConfigError("the output is a folder", where=str(out), must="a file, new or old")
    if out.resolve() in [file.resolve() for file in table.files]:
        raise ConfigError(
            "the scores would take the place of the table",
            where="--out",
            must="another file",
            got=out,
        )
    bare = [name for name, kind in table.schema.items() if not _fits_csv(kind)]
    if out.suffix == ".csv" and bare:
        raise ConfigError(
            f"column `{bare[0]}` cannot be written as CSV",
            where=f"{table.files[0]} -> {bare[0]}",
            must="text, numbers, booleans or times",
            got=str(table.schema[bare[0]]),
            hint="write the scores as .parquet, or drop the column",
        )


def _fits_csv(kind: Any) -> bool:
    return not (kind.is_nested() or kind in (pl.Binary, pl.Object, pl.Duration))


@contextmanager
def _folder_beside(out: Path) -> Iterator[Path]:
    """Yield a folder on the output's own disk, gone at the end; a rename out of it is atomic."""
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        yield Path(folder)


def _join(parts: list[Path], file: Path) -> int:
    """Write the parts, in their order, as one file of its suffix's format; return its rows."""
    whole = pl.scan_parquet(parts)
    if file.suffix == ".csv":
        whole.sink_csv(file)
    else:
        whole.sink_parquet(file)
    with file.open("rb") as handle:  # after a power cut no name comes before its bytes
        os.fsync(handle.fileno())
    return int(whole.select(pl.len()).collect().item())
