"""PreRanker -> three ONNX graphs, cut where a serving system cuts a score.

    user:    user, history, offsets, features -> user_part_*    once a request
    item:    item, features, content          -> item_part_*    once an item, then kept
    scorer:  user_part_*, item_part_*         -> logits (B, C)  what remains a candidate

Features and content come in as inputs, so that new values need no new export; id embeddings and
what histories are pooled from are weights of the graphs.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prerank.errors import ArtifactError, MissingExtraError
from prerank.ranking.model import Parts, PreRankerModel
from prerank.ranking.pre_ranker import PreRanker

OPSET = 20
CONTENT = "inputs.content"
# Tables that stay in the graphs, as they say what an id is rather than what is known of it.
USER_OWN = ("inputs.user_id.own",)
ITEM_OWN = ("inputs.item_id.own", "cross.slots", "cross.used", "cross.unit")
EXTERNAL_BYTES = 1 << 30  # weights beyond this lie beside the graph: a protobuf ends at 2 GiB


class _UserParts(nn.Module):
    """The user's side of a model, fed with rows of features in place of its tables."""

    def __init__(self, model: PreRankerModel, names: Sequence[str]) -> None:
        super().__init__()
        self.method, self.names = _Method(model, "user_parts"), tuple(names)

    def forward(self, user_B: Tensor, item_T: Tensor, offsets_B1: Tensor, *rows: Tensor) -> Parts:
        tables = dict(zip(self.names, rows, strict=True))
        tables |= _own_rows(self.method.model, USER_OWN, user_B)
        row_B = torch.arange(user_B.shape[0])
        return _with_tables(self.method, tables, (row_B, item_T, offsets_B1))


class _ItemParts(nn.Module):
    """The item's side of a model, fed with rows of features and content."""

    def __init__(self, model: PreRankerModel, names: Sequence[str]) -> None:
        super().__init__()
        self.method, self.names = _Method(model, "item_parts"), tuple(names)

    def forward(self, item_B: Tensor, *rows: Tensor) -> Parts:
        tables = dict(zip(self.names, rows, strict=True))
        if CONTENT in tables:
            # The model keeps content at about 1 a coordinate; callers have unit vectors.
            tables[CONTENT] = tables[CONTENT] * math.sqrt(tables[CONTENT].shape[1])
        tables |= _own_rows(self.method.model, ITEM_OWN, item_B)
        return _with_tables(self.method, tables, (torch.arange(item_B.shape[0]),))


def _own_rows(model: PreRankerModel, names: Sequence[str], row_B: Tensor) -> dict[str, Tensor]:
    """Return the rows of the tables that stay inside a graph."""
    tables = dict(model.named_buffers())
    return {name: tables[name].index_select(0, row_B) for name in names if name in tables}


class _Combine(nn.Module):
    """What remains for each candidate."""

    def __init__(self, model: PreRankerModel, n_user_parts: int) -> None:
        super().__init__()
        self.model, self.n_user_parts = model, n_user_parts

    def forward(self, *parts: Tensor) -> Tensor:
        return self.model.combine(parts[: self.n_user_parts], parts[self.n_user_parts :])


class _Method(nn.Module):
    """One method of a model as a module of its own."""

    def __init__(self, model: PreRankerModel, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *values: Tensor) -> Any:
        return getattr(self.model, self.name)(*values)


def _with_tables(
    method: _Method, tables: Mapping[str, Tensor], values: tuple[Tensor, ...]
) -> Parts:
    """Call a method whose tables are replaced, row by row, with what the caller gives."""
    named = {f"model.{name}": table for name, table in tables.items()}
    found: Parts = torch.func.functional_call(method, named, values)
    return found


@dataclass(frozen=True)
class Graph:
    """How a graph is made: its module, an example call, and the letters of its shapes.

    Attributes:
        inputs: name -> example tensor.
        outputs: names.
        axes: which dimensions vary, in the form of the module's arguments.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    axes: tuple[Any, ...]


def graphs(ranker: PreRanker) -> dict[str, Graph]:
    """Return the three graphs of a pre-ranker, ready for `write_graph`.

    A table without columns is no input: serving systems know no empty tensors.
    """
    model = ranker.model
    batch, total, candidates = map(torch.export.Dim, ("batch", "total", "candidates"))
    # Two or more rows everywhere: an example size of 1 would be taken for a constant.
    user_tables = {name: rows[[-1] * 3] for name, rows in user_tables_of(model).items()}
    item_tables = {name: rows[[-1] * 4] for name, rows in item_tables_of(model).items()}
    user = {
        "user": torch.zeros(3, dtype=torch.int64),
        "history": torch.zeros(5, dtype=torch.int32),
        "offsets": torch.tensor([0, 2, 2, 5], dtype=torch.int32),
        **{short(name): rows for name, rows in user_tables.items()},
    }
    item = {
        "item": torch.zeros(4, dtype=torch.int64),
        **{short(name): rows for name, rows in item_tables.items()},
    }
    users, items = _UserParts(model, list(user_tables)), _ItemParts(model, list(item_tables))
    with torch.inference_mode():
        user_parts, item_parts = users(*user.values()), items(*item.values())
    named_users = {f"user_part_{k}": part.clone() for k, part in enumerate(user_parts)}
    named_items = {f"item_part_{k}": part.clone() for k, part in enumerate(item_parts)}
    by_batch, by_candidates = {0: batch}, {0: candidates}
    user_axes = (by_batch, {0: total}, {0: batch + 1}, *_each(by_batch, user_tables))
    item_axes = (by_batch, *_each(by_batch, item_tables))
    part_axes = ((by_batch,) * len(named_users) + (by_candidates,) * len(named_items),)
    combine = _Combine(model, len(user_parts))
    return {
        "user": Graph(users, user, list(named_users), user_axes),
        "item": Graph(items, item, list(named_items), item_axes),
        "scorer": Graph(combine, named_users | named_items, ["logits"], part_axes),
    }


def _each(axes: Mapping[int, Any], tables: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """Return the axes of a module's ``*rows``; no rows, no axes."""
    return ((axes,) * len(tables),) if tables else ()


def user_tables_of(model: PreRankerModel) -> dict[str, Tensor]:
    """Return the tables of user features by buffer name, (U + 1, ...) each."""
    return _wide(model, "inputs.user_features.")


def item_tables_of(model: PreRankerModel) -> dict[str, Tensor]:
    """Return the tables of item features and content by buffer name, (I + 1, ...) each."""
    return _wide(model, "inputs.item_features.", CONTENT)


def _wide(model: PreRankerModel, *prefixes: str) -> dict[str, Tensor]:
    buffers = model.named_buffers()
    return {n: rows for n, rows in buffers if n.startswith(prefixes) and rows.shape[1]}


def short(name: str) -> str:
    """Return a table's name as an input of a graph: ``codes``, ``lists_0_inside``, ``content``."""
    return name.removeprefix("inputs.").partition("_features.")[2].replace(".", "_") or "content"


def write_graph(graph: Graph, path: Path) -> None:
    """Write one graph as ONNX.

    Raises:
        MissingExtraError: the export extra is not installed.
    """
    try:
        import onnx_ir
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError:
        raise MissingExtraError(
            "onnx or onnxscript is absent", hint='pip install "prerank[export]"'
        ) from None
    with _quiet():
        program: Any = torch.onnx.export(
            graph.module.eval(),
            tuple(graph.inputs.values()),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=graph.axes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    model = program.model
    fixed = [v.name for v in model.graph.inputs if isinstance(v.shape[0], int)]
    if fixed:
        raise ArtifactError("the graph takes one number of rows only", got=fixed)
    # Stack traces of the machine that exported it are nobody's business and never equal.
    model.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    path.parent.mkdir(parents=True, exist_ok=True)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    onnx_ir.save(model, path, external_data="model.onnx.data" if size > EXTERNAL_BYTES else None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on torch's own internals to itself."""
    names = ("torch.onnx._internal.exporter", "torch.onnx", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
