"""Scores of a bundle, in process: NumPy and ONNX Runtime, neither torch nor HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import FloatArray, IntArray
from prerank.errors import ArtifactError, MissingExtraError
from prerank.serving.bundle import Bundle, Precision, graph_file
from prerank.serving.schema import Tables


@dataclass(frozen=True, eq=False)
class UserState:
    """What the user tower reads of one user.

    Attributes:
        row: the user's row in the vocabulary; U = unknown.
        tables: name -> (1, ...) the user's row of each table of features.
        history: (H,) int32 item rows, at most max_history of them, oldest first.
    """

    row: int
    tables: Tables
    history: IntArray


def session(path: str | bytes) -> Any:
    """Open an ONNX graph that runs in the thread that calls it."""
    try:
        import onnxruntime as ort
    except ImportError:
        raise MissingExtraError(
            "onnxruntime is absent", hint='pip install "prerank[export]"'
        ) from None
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


TILE_BYTES, MIN_TILE = 3 << 18, 512  # of item rows scored at once, so that all stays in the cache


class ItemRows:
    """One part of what the item tower says of all items, at some precision."""

    def __init__(self, rows: NDArray[Any], scale: NDArray[Any] | None) -> None:
        self.rows, self.scale = rows, scale

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as the graph reads it."""
        return int(np.prod(self.rows.shape[1:])) * max(4, self.rows.itemsize)

    def take(self, item_C: NDArray[Any]) -> NDArray[Any]:
        """Return the rows of items, (C, ...), as float32 (integers stay what they are)."""
        taken = self.rows.take(item_C, axis=0)
        if self.scale is not None:
            scale = self.scale.take(item_C)
            shaped = scale.reshape(-1, *[1] * (taken.ndim - 1))
            exact: NDArray[Any] = np.multiply(taken, shaped, dtype=np.float32)
            return exact
        widened: NDArray[Any] = taken.astype(np.float32) if taken.dtype == np.float16 else taken
        return widened


def require_rows(bundle: Bundle, what: str, found: int, must: int) -> None:
    """Raise ArtifactError unless a table has as many rows as the schema says."""
    if found != must:
        raise ArtifactError(
            f"schema and {what} differ",
            where=str(bundle.path),
            must=f"{must} rows",
            got=found,
            hint="export the run again",
        )


class Scorer:
    """Scores candidates for one user at a time. Safe to call from several threads.

    Args:
        bundle: what to score with.
        precision: of the item rows; the graphs stay float32.
        threads: over which the candidates of one call are spread, tile by tile.
    """

    def __init__(self, bundle: Bundle, precision: Precision = "float32", threads: int = 1) -> None:
        self.bundle = bundle
        about = bundle.about
        self.n_items: int = about["n_items"]
        self.max_history: int = about["max_history"]
        self._spread: bool = about["history"] == "spread"
        ids = bundle.items["id"].to_list()
        require_rows(bundle, "items", len(ids), self.n_items)
        self._row_of = dict(zip(ids, range(len(ids)), strict=True))
        self._user = session(str(bundle.path / graph_file("user")))
        self._scorer = session(str(bundle.path / graph_file("scorer")))
        # Both NumPy's gather and ONNX Runtime let go of the interpreter while they work.
        self._pool = ThreadPoolExecutor(threads, "scorer") if threads > 1 else None
        self._parts = [
            ItemRows(*bundle.item_part(part, precision)) for part in range(len(about["item_parts"]))
        ]
        for part in self._parts:
            require_rows(bundle, "an item part", len(part.rows), self.n_items + 1)
        row_bytes = sum(part.row_bytes for part in self._parts)
        self._tile = max(MIN_TILE, TILE_BYTES // max(1, row_bytes))
        self._user_inputs = {i.name for i in self._user.get_inputs()}
        self._user_outputs = [o.name for o in self._user.get_outputs()]
        self._scorer_inputs = {i.name for i in self._scorer.get_inputs()}

    def item_rows(self, ids: Sequence[str]) -> IntArray:
        """Return the row of each item id, (C,) int32; I = unknown."""
        found = map(self._row_of.get, ids, repeat(self.n_items))
        return np.fromiter(found, dtype=np.int32, count=len(ids))

    def known_rows(self, rows: NDArray[Any]) -> IntArray:
        """Return ``rows`` with all that is no item of the vocabulary set to I = unknown."""
        unknown = (rows < 0) | (rows > self.n_items)
        return np.where(unknown, self.n_items, rows).astype(np.int32)

    def history(self, ids: Sequence[str]) -> IntArray:
        """Return the history a model may read of the given item ids, oldest first.

        Unknown items are left out; of more than ``max_history`` the latest stay, or an even spread
        where the data has no time.
        """
        rows = self.item_rows(ids)
        rows = rows[rows < self.n_items]
        size, taken = len(rows), min(len(rows), self.max_history)
        if size == taken:
            return rows
        if self._spread:
            return rows[np.arange(taken) * size // taken]
        return rows[-taken:]

    def user_parts(self, state: UserState) -> Mapping[str, NDArray[Any]]:
        """Return what the user tower says of one user, by name; one row each."""
        feed = {
            "user": np.array([state.row], dtype=np.int64),
            **state.tables,
            "history": state.history,
            "offsets": np.array([0, len(state.history)], dtype=np.int32),
        }
        used = {name: value for name, value in feed.items() if name in self._user_inputs}
        return dict(zip(self._user_outputs, self._user.run(None, used), strict=True))

    def logits(self, state: UserState, item_C: IntArray) -> FloatArray:
        """Return the logit of each candidate, (C,) float32.

        Args:
            state: the user.
            item_C: (C,) int32 item rows in 0..I; I = unknown.
        """
        feed, logit_C = self.user_parts(state), np.empty(len(item_C), dtype=np.float32)

        def score(start: int) -> None:
            tile = slice(start, start + self._tile)
            given = dict(feed)
            for k, part in enumerate(self._parts):
                given[f"item_part_{k}"] = part.take(item_C[tile])
            used = {name: value for name, value in given.items() if name in self._scorer_inputs}
            logit_C[tile] = self._scorer.run(None, used)[0][0]

        # A tile's logits do not depend on the others: any number of threads, the same bytes.
        run = map if self._pool is None else self._pool.map
        for _ in run(score, range(0, len(item_C), self._tile)):
            pass
        return logit_C

    def rank(
        self, state: UserState, item_C: IntArray, top_k: int | None = None
    ) -> tuple[NDArray[np.int64], FloatArray]:
        """Return positions in ``item_C`` from best to worst and their logits.

        At most ``top_k``; ties keep the order of the candidates.
        """
        logit_C = self.logits(state, item_C)
        best = best_first(logit_C, top_k)
        return best, logit_C[best]


def best_first(logit_C: FloatArray, top_k: int | None) -> NDArray[np.int64]:
    """Return the positions of the ``top_k`` (None: all) largest values, largest first.

    Ties go to the earlier position, also at the cut.
    """
    if top_k is None or top_k >= len(logit_C):
        return np.argsort(-logit_C, kind="stable")
    edge = -np.partition(-logit_C, top_k - 1)[top_k - 1]
    above = np.flatnonzero(logit_C > edge)
    at_edge = np.flatnonzero(logit_C == edge)[: top_k - len(above)]
    chosen = np.sort(np.concatenate([above, at_edge]))
    return chosen[np.argsort(-logit_C[chosen], kind="stable")]
