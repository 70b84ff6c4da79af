"""Reading a Report: records by key, methods in the order people should see them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from prerank.artifacts import Record, Report
from prerank.evaluation.config import EvaluateConfig

Role = Literal["method", "control", "baseline", "other"]
Index = Mapping[tuple[str, str, str, str], Record]


@dataclass(frozen=True)
class View:
    """A report made easy to read.

    Attributes:
        config: the settings it was made with (defaults where the report does not say).
        methods: (name, role): the method, its controls, then baselines and others as given.
        pools: names, in the report's order.
        segments: names, in the report's order.
        records: (method, pool, segment, metric) -> record.
        differences: the same, with method as ``"gpl - exposed-only"``.
        extra: the report's extra.
    """

    config: EvaluateConfig
    methods: tuple[tuple[str, Role], ...]
    pools: tuple[str, ...]
    segments: tuple[str, ...]
    records: Index
    differences: Index
    extra: Mapping[str, Any]

    @property
    def baseline(self) -> str:
        """The first baseline that was scored, empty if none was."""
        known = {name for name, _ in self.methods}
        return next((name for name in self.config.baselines if name in known), "")

    def record(self, method: str, pool: str, segment: str, metric: str) -> Record | None:
        """Return a record, None if the report has none."""
        return self.records.get((method, pool, segment, metric))

    def difference(
        self, method: str, pool: str, segment: str, metric: str, baseline: str = ""
    ) -> Record | None:
        """Return ``method`` minus ``baseline`` (the first one by default), None if absent."""
        name = f"{method} - {baseline or self.baseline}"
        return self.differences.get((name, pool, segment, metric))


def view(report: Report) -> View:
    """Index a report."""
    about = report.extra.get("evaluation", {})
    config = EvaluateConfig.parse(about.get("config", {}), where="report.json")
    names = about.get("methods") or list(dict.fromkeys(r.method for r in report.records))
    return View(
        config=config,
        methods=tuple(_ordered(names, config)),
        pools=tuple(dict.fromkeys(r.pool for r in report.records)),
        segments=tuple(dict.fromkeys(r.segment for r in report.records)),
        records=_index(report.records),
        differences=_index(report.differences),
        extra=report.extra,
    )


def excludes_zero(record: Record | None) -> bool:
    """Say whether the record has an interval and zero lies outside of it."""
    if record is None or record.low is None or record.high is None:
        return False
    return record.low > 0 or record.high < 0


def half_width(record: Record) -> float | None:
    """Return half the length of the record's interval, None without one."""
    if record.low is None or record.high is None:
        return None
    return (record.high - record.low) / 2


def _index(records: Iterable[Record]) -> Index:
    return {(r.method, r.pool, r.segment, r.metric): r for r in records}


def _ordered(names: list[str], config: EvaluateConfig) -> list[tuple[str, Role]]:
    def of(role: Role, chosen: Iterable[str]) -> list[tuple[str, Role]]:
        return [(name, role) for name in chosen if name in names]

    first = of("method", [config.method])
    controls = of("control", [c for c in config.controls if c != config.method])
    placed = {name for name, _ in [*first, *controls]}
    rest = [name for name in names if name not in placed]
    baselines = of("baseline", [name for name in config.baselines if name in rest])
    others = of("other", [name for name in rest if name not in config.baselines])
    return [*first, *controls, *baselines, *others]
