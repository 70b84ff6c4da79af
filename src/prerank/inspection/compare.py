"""Methods of a run side by side, runs side by side, and the days of a simulated A/B test.

Runs that test the same users are compared user by user, the first one with each of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from prerank.artifacts import LEAST_USERS
from prerank.evaluation import pairing, sections
from prerank.evaluation.extra import TestExtra
from prerank.evaluation.plots import Plot
from prerank.evaluation.sheets import references, verdict
from prerank.evaluation.significance import holm
from prerank.evaluation.summary import main_pool, summarise
from prerank.evaluation.view import COMPETING, View
from prerank.inspection.asked import Compare, not_found
from prerank.inspection.opened import OpenedRun


def compare(runs: Sequence[OpenedRun], asked: Compare) -> dict[str, Any]:
    """Return methods by segment with intervals and marks, for one run or several."""
    opened = dict(zip(_names(runs), runs, strict=True))
    known = {name: run.seen for name, run in opened.items() if run.seen and run.seen.pools}
    simulated = [run for run in runs if run.simulation is not None]
    if not known:
        if not simulated:
            raise not_found("nothing here was evaluated", "`prerank evaluate RECIPE` does it")
        return {
            "runs": [],
            "n_runs": len(runs),
            "pairs": [],
            "simulations": [_simulation(run) for run in simulated],
        }
    first = next(iter(known.values()))
    pool = _one("pool", asked.pool, _union(known, "pools"), main_pool(first))
    metrics = list(dict.fromkeys(m for one in known.values() for _, _, _, m in one.records))
    metric = _one("metric", asked.metric, metrics, "gauc" if "gauc" in metrics else metrics[0])
    against_known = list(dict.fromkeys(n for one in known.values() for n in references(one)))
    against = _one("method", asked.against, against_known, (against_known or [""])[0])
    names = list(dict.fromkeys(n for one in known.values() for n, _ in one.methods))
    for name in asked.method:
        _one("method", name, names, "")
    shown = asked.method or names
    return {
        "pool": pool,
        "pools": _union(known, "pools"),
        "metric": metric,
        "metrics": metrics,
        "against": against,
        "references": against_known,
        "methods": names,
        "chosen": asked.method,
        "segments": list(dict.fromkeys(s for one in known.values() for s in one.segments)),
        "n_runs": len(runs),
        "runs": [
            {
                "name": name,
                "summary": summarise(one),
                "methods": _methods(one, pool, metric, against, shown),
            }
            for name, one in known.items()
        ],
        "pairs": [
            _paired(opened[next(iter(known))], opened[name], name, (pool, metric), shown)
            for name in list(known)[1:]
        ],
        "simulations": [_simulation(run) for run in simulated],
    }


def _names(runs: Sequence[OpenedRun]) -> list[str]:
    """Return the name of each run; those that share one get the folder, then a number."""
    names = [run.name for run in runs]
    names = [str(r.root) if names.count(n) > 1 else n for n, r in zip(names, runs, strict=True)]
    return [
        f"{name} ({place + 1})" if names.count(name) > 1 else name
        for place, name in enumerate(names)
    ]


def _one(what: str, wanted: str, known: Sequence[str], default: str) -> str:
    if wanted and wanted not in known:
        raise not_found(f"no {what} {wanted[:80]!r} here", f"known: {', '.join(known)}"[:500])
    return wanted or default


def _union(known: dict[str, View], field: str) -> list[str]:
    return list(dict.fromkeys(name for one in known.values() for name in getattr(one, field)))


def _methods(
    seen: View, pool: str, metric: str, against: str, shown: Sequence[str]
) -> list[dict[str, Any]]:
    tests: dict[tuple[str, str], TestExtra] = {
        (test["method"], test["segment"]): test
        for test in seen.extra.get("evaluation", {}).get("tests", [])
        if (test["pool"], test["metric"], test["reference"]) == (pool, metric, against)
    }
    rows = []
    for name, role in seen.methods:
        if name not in shown:
            continue
        cells = {}
        for segment in seen.segments:
            record = seen.record(name, pool, segment, metric)
            if record is None:
                continue
            gap = seen.difference(name, pool, segment, metric, baseline=against)
            low, high = record.interval or (None, None)
            gap_low, gap_high = (gap.interval if gap else None) or (None, None)
            test = tests.get((name, segment))
            cells[segment] = {
                "value": record.value,
                "low": low,
                "high": high,
                "n": record.n,
                "seeds": record.seeds,
                "reason": record.reason,
                "difference": None if gap is None else gap.value,
                "difference_low": gap_low,
                "difference_high": gap_high,
                "p_holm": None if test is None else test["p_holm"],
                "mark": "" if test is None else verdict(seen, test, against),
            }
        if cells:
            rows.append({"name": name, "role": role, "segments": cells})
    return rows


def _paired(
    first: OpenedRun, second: OpenedRun, name: str, asked: tuple[str, str], shown: Sequence[str]
) -> dict[str, Any]:
    """Return ``second`` minus ``first``, paired by the users that both test."""
    pool, metric = asked
    files = [run.store.path("report") / pairing.FILE for run in (first, second)]
    found: dict[str, Any] = {"name": name, "n_shared": 0, "why": "", "methods": []}
    if not all(file.is_file() for file in files):
        return {**found, "why": "one of them was evaluated before values of users were kept"}
    users = [pairing.read_users(file, pool) for file in files]
    if users[0] is None or users[1] is None:
        return {**found, "why": f"only one of them has the pool {pool}"}
    same = first.artifacts["dataset"].fingerprint == second.artifacts["dataset"].fingerprint
    rows = [np.arange(len(users[0]))] * 2
    if not same:
        one, other = (
            run.dataset.users.ids[of] for run, of in zip((first, second), users, strict=True)
        )
        _, *rows = np.intersect1d(one, other, assume_unique=True, return_indices=True)
    found |= {"n_shared": len(rows[0]), "same_data": same}
    if not len(rows[0]):
        return {**found, "why": "no user is tested in both"}
    methods = _paired_methods((first, second), files, rows, asked, shown)
    why = "" if methods else f"no method has {metric} user by user in both"
    return {**found, "methods": methods, "why": why}


def _paired_methods(
    runs: tuple[OpenedRun, OpenedRun],
    files: Sequence[Path],
    rows: Sequence[Any],
    asked: tuple[str, str],
    shown: Sequence[str],
) -> list[dict[str, Any]]:
    pool, metric = asked
    seen = runs[0].seen
    assert seen is not None
    roles, level = dict(seen.methods), seen.config.interval
    found: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in roles if name in shown}
    for segment in seen.segments:
        cells = {}
        for name in found:
            kept = [pairing.read_kept(file, name, pool, segment, metric) for file in files]
            if kept[0] is None or kept[1] is None:
                continue
            gap = pairing.paired(kept[0].take(rows[0]), kept[1].take(rows[1]), level)
            if gap is not None:
                cells[name] = gap
        # One family: the methods in competition, on one metric, segment and pool.
        judged = {name: gap for name, gap in cells.items() if gap.n >= LEAST_USERS}
        family = [name for name in judged if roles[name] in COMPETING]
        corrected = dict(zip(family, holm([cells[name].p for name in family]), strict=True))
        for name, gap in cells.items():
            cell = {**asdict(gap), "p_holm": corrected.get(name), "mark": ""}
            if name in judged:
                p = corrected.get(name, gap.p)
                cell["mark"] = "tie" if p > 1 - level else "win" if gap.value > 0 else "loss"
            else:
                cell |= {"low": None, "high": None, "p": None}
            found[name][segment] = cell
    return [
        {"name": name, "role": roles[name], "segments": cells}
        for name, cells in found.items()
        if cells
    ]


def _simulation(run: OpenedRun) -> dict[str, Any]:
    from prerank.simulation.page import cells, pair_cells
    from prerank.simulation.show import names_of

    result = dict(run.simulation or {})
    result.pop("counts", None)
    result.pop("recipe", None)
    return {
        "run": run.name,
        "result": result,
        "shown": names_of(result),
        "cells": cells(result),
        "pairs": pair_cells(result),
    }


def compare_plots(runs: Sequence[OpenedRun], data: dict[str, Any]) -> dict[str, list[Plot]]:
    """Return GAUC with intervals of each run, and the days of each simulation."""
    from prerank.simulation.page import ab_plots

    found: dict[str, list[Plot]] = {"metrics": []}
    if data["runs"]:
        for name, run in zip(_names(runs), runs, strict=True):
            if run.seen is not None and data["pool"] in run.seen.pools:
                plots = sections.metric_plots(run.seen, data["pool"])
                if len(runs) > 1:
                    plots = [replace(one, title=f"{name}: {one.title}") for one in plots]
                found["metrics"] += plots
    for place, one in enumerate(data["simulations"]):
        found[f"simulation{place}"] = ab_plots(one["result"])
    return found
