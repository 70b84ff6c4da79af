"""Reading a Report: records by key, methods in the order people should see them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prerank.artifacts import Record, Report
from prerank.evaluation.config import EvaluateConfig
from prerank.evaluation.extra import PoolExtra

Role = Literal["method", "control", "baseline", "other", "ceiling", "variant", "label"]
SHOWN: tuple[Role, ...] = (
    "method",
    "control",
    "baseline",
    "other",
    "ceiling",
    "variant",
    "label",
)
COMPETING: tuple[Role, ...] = ("method", "control", "baseline", "other")
"""Ceilings know more than a pre-ranker may; variants and label scores are there to explain."""
AT = "@"
"""Joins a method and the variant of it that an arm is: ``gpl@fewer-anchors``."""
Index = Mapping[tuple[str, str, str, str], Record]


@dataclass(frozen=True)
class View:
    """A report made easy to read.

    Attributes:
        config: the settings it was made with (defaults where the report does not say).
        methods: (name, role): the method, its controls, baselines, others, ceilings, variants,
            then label scores alone.
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

    @property
    def main(self) -> tuple[tuple[str, Role], ...]:
        """The methods without what belongs to variants: those stand in a table of their own."""
        return tuple((name, role) for name, role in self.methods if AT not in name)

    def facts(self, pool: str) -> PoolExtra | None:
        """Return the size and make-up of a pool, None where the report does not say."""
        found: PoolExtra | None = self.extra.get("evaluation", {}).get("pools", {}).get(pool)
        return found

    def users(self, pool: str) -> str:
        """Return how many users a pool has, and of how many GAUC is the mean where they are fewer.

        Empty where the report does not say.
        """
        about = self.facts(pool)
        if about is None:
            return ""
        found = f"{about['users']:,} users"
        behind = self.behind_gauc(pool)
        return found + f" ({behind:,} with both a click and none)" * (behind < about["users"])

    def behind_gauc(self, pool: str) -> int:
        """Return how many users of a pool have both a clicked and a not clicked row."""
        records = (self.record(name, pool, "all", "gauc") for name, _ in self.methods)
        return max((record.n for record in records if record is not None), default=0)

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
        methods=tuple(ordered_roles(names, about.get("label_scores", []), config)),
        pools=tuple(dict.fromkeys(r.pool for r in report.records)),
        segments=tuple(dict.fromkeys(r.segment for r in report.records)),
        records=_index(report.records),
        differences=_index(report.differences),
        extra=report.extra,
    )


def shows_difference(record: Record | None) -> bool:
    """Say whether zero lies outside of the record's interval and enough users are behind it."""
    if record is None or record.interval is None:
        return False
    low, high = record.interval
    return low > 0 or high < 0


def half_width(record: Record) -> float | None:
    """Return half the length of the record's interval, None without one."""
    if record.interval is None:
        return None
    low, high = record.interval
    return (high - low) / 2


def _index(records: Iterable[Record]) -> Index:
    return {(r.method, r.pool, r.segment, r.metric): r for r in records}


def ordered_roles(
    names: Sequence[str], labels: Sequence[str], config: EvaluateConfig
) -> list[tuple[str, Role]]:
    """Give every method its role; within a role they keep the order of config or report."""
    claims: dict[Role, Iterable[str]] = {
        "method": [config.method],
        "control": config.controls,
        "baseline": config.baselines,
        "ceiling": config.ceilings,
        "label": labels,
        "variant": [name for name in names if AT in name and name not in labels],
        "other": names,
    }
    role_of: dict[str, Role] = {}
    for role, claimed in claims.items():
        for name in claimed:
            if name in names:
                role_of.setdefault(name, role)
    return sorted(role_of.items(), key=lambda pair: SHOWN.index(pair[1]))
