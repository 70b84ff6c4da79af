"""Which figures a finished artifact holds, by their flat names.

    time/train/gpl/seed0                      seconds of a step
    encode/..., tokenize/..., generate/llm/...  numbers of its quality report
    finetune/loss                             one figure an epoch
    label/gpl/mean_label                      numbers of what was fitted
    train/gpl/seed0/gauc                      one figure an epoch
    test/gauc/unexposed/tail                  the main method's figures of the report
    test/exposed-only/gauc/unexposed/tail     every arm's

The stages write these files for readers; nothing is computed here, and no artifact is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prerank.tracking.tracker import Measures

STORY = "pre_ranker.json"
"""Holds one record an epoch."""


def prefix(stage: str, key: str) -> str:
    """Return where the names of a step begin: ``train/gpl/seed0``, ``finetune@small``."""
    head, _, name = key.partition("/")
    _, at, variant = head.partition("@")
    return "/".join(part for part in (f"{stage}{at}{variant}", name) if part)


def measures(stage: str, key: str, folder: Path, main: str) -> Iterator[Measures]:
    """Yield the figures of the artifact in ``folder``.

    Args:
        stage: the verb that made it.
        key: where it lies in the store.
        main: the method whose test figures carry no name of a method.
    """
    start = prefix(stage, key)
    match stage:
        case "encode" | "tokenize" | "generate":
            yield 0, _numbers(_read(folder / "quality.json"), start)
        case "label":
            yield 0, _numbers(_read(folder / "labels.json").get("fit", {}), start)
        case "finetune":
            about = _read(folder / "finetune.json")
            for name, kept in (("loss", "train_loss"), ("held_out_loss", "held_out_loss")):
                for number, value in enumerate(about.get(kept, ())):
                    yield number, {f"{start}/{name}": float(value)}
        case "teach" | "train":
            for record in _read(folder / STORY).get("history", ()):
                yield epoch(record, start)
        case "evaluate":
            yield 0, _test_figures(_read(folder / "report.json").get("records", ()), main)
    seconds = _read(folder / "manifest.json").get("seconds")
    yield 0, {} if seconds is None else {f"time/{start}": float(seconds)}


def epoch(record: Mapping[str, Any], start: str) -> Measures:
    """Return one epoch's figures, whose names begin with ``start``."""
    return int(record["epoch"]), _numbers(record, start, leave="epoch")


def _read(file: Path) -> Any:
    return json.loads(file.read_text()) if file.is_file() else {}


def _numbers(values: Mapping[str, Any], start: str, leave: str = "") -> dict[str, float]:
    return {
        f"{start}/{name}": float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != leave
    }


def _test_figures(records: list[Mapping[str, Any]], main: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for record in records:
        if record["value"] is None:
            continue
        name = f"{record['metric']}/{record['pool']}/{record['segment']}"
        found[f"test/{record['method']}/{name}"] = float(record["value"])
        if record["method"] == main:
            found[f"test/{name}"] = float(record["value"])
    return found
