"""What a bundle says of itself: the model card, the example and the Triton configurations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined

from prerank import __version__
from prerank.artifacts import Record, Report

if TYPE_CHECKING:
    from prerank.serving.export import Trained

SEGMENTS = ("all", "tail")
_TYPES = {
    "tensor(int64)": "TYPE_INT64",
    "tensor(int32)": "TYPE_INT32",
    "tensor(float)": "TYPE_FP32",
    "tensor(bool)": "TYPE_BOOL",
}


def example() -> str:
    """Return the script that scores with NumPy and ONNX Runtime alone."""
    return (resources.files("prerank.serving") / "score.py.txt").read_text()


def triton(name: str, signature: Mapping[str, list[dict[str, Any]]]) -> str:
    """Return the config.pbtxt of one graph: CPU, one thread a call, as many rows as asked.

    Args:
        name: of the model.
        signature: its ``inputs`` and ``outputs``: name, type, shape (-1 = any).
    """
    blocks = [f'name: "{name}"', 'backend: "onnxruntime"', "max_batch_size: 0"]
    for kind in ("inputs", "outputs"):
        entries = [
            f'  {{ name: "{v["name"]}" data_type: {_TYPES[v["type"]]} dims: {v["shape"]} }}'
            for v in signature[kind]
        ]
        blocks.append(f"{kind[:-1]} [\n" + ",\n".join(entries) + "\n]")
    blocks.append("instance_group [ { kind: KIND_CPU } ]")
    blocks.append(
        'parameters { key: "intra_op_thread_count" value: { string_value: "1" } }\n'
        'parameters { key: "inter_op_thread_count" value: { string_value: "1" } }'
    )
    return "\n".join(blocks) + "\n"


def card(trained: Trained, folder: Path, about: Mapping[str, Any]) -> str:
    """Return the model card of a bundle whose JSON files are written already."""
    made = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in ("parity", "precision", "latency")
    }
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = (resources.files("prerank.serving") / "card.md.jinja").read_text()
    return environment.from_string(text).render(
        about=about,
        trained=trained,
        dataset=trained.dataset,
        config=trained.ranker.config.model_dump(mode="json"),
        records=shown_records(trained.report, trained.method),
        differences=shown_differences(trained.report, trained.method),
        version=__version__,
        cell=cell,
        **made,
    )


def shown_records(report: Report | None, method: str) -> list[Record]:
    """Return the report's lines of one method."""
    if report is None:
        return []
    return [r for r in report.records if r.method == method and r.segment in SEGMENTS]


def shown_differences(report: Report | None, method: str) -> list[Record]:
    """Return the report's paired differences between one method and its baselines."""
    if report is None:
        return []
    mine = [r for r in report.differences if r.method.startswith(f"{method} - ")]
    return [r for r in mine if r.segment in SEGMENTS]


def cell(record: Record) -> str:
    """Return a record's value with its interval, or why it has none."""
    if record.value is None:
        return record.reason
    if record.interval is None:
        return f"{record.value:.4f}"
    low, high = record.interval
    return f"{record.value:.4f} [{low:.4f}, {high:.4f}]"
