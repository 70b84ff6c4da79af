"""simulate: a recipe -> simulation.json and simulation.html.

The unit of work is a replication; replications run side by side in ``workers`` processes. Of each
arm the finished counts are kept, and while it lives its state every ``checkpoint_days``; both are
written whole or not at all, so a killed run goes on where it stopped and gives the same bytes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from prerank import store as stores
from prerank.artifacts import Dataset
from prerank.errors import ConfigError
from prerank.lock import die_with_parent, given_up_when_stopped, locked
from prerank.pipeline import Run
from prerank.plan import code, encoders, revision, weights
from prerank.plugins import PluginConfig
from prerank.progress import log, silence, track
from prerank.recipe import Recipe, all_methods, parse_recipe
from prerank.simulation.loop import Replication, load_life, save_life
from prerank.simulation.measures import METRICS, Counts
from prerank.simulation.page import write_page
from prerank.simulation.shops import REFERENCES, REFERENCES_OF_WORLD
from prerank.simulation.summary import against, as_json, by_day, table, values_of
from prerank.sources import hash_file
from prerank.store import Manifest, Store

KEY, RESULT, PAGE = "simulation", "simulation.json", "simulation.html"
BEFORE = "before"
"""Stands for an arm where the production policy's days before the arms are meant."""
NOT_OF_AN_ARM = ("arms", "baseline", "references", "n_replications", "checkpoint_days", "interval")


def with_arms(recipe: Recipe) -> tuple[Recipe, tuple[str, ...]]:
    """Return ``recipe`` with the methods that serve, and the arms: baseline first, references last.

    Arms are methods of the recipe or, where it has none of the name, of `all_methods`.

    Raises:
        ConfigError: there is no such method, a method has the name of a reference, or the recipe
            takes semantic IDs or a language model from another run.
    """
    config, known = recipe.simulate, {**all_methods(truth=True), **recipe.methods}
    if {BEFORE, *REFERENCES_OF_WORLD} & set(recipe.methods):
        raise ConfigError(
            "the name of a method is taken",
            where="methods",
            must=f"none of {', '.join((BEFORE, *REFERENCES_OF_WORLD))}",
            got=", ".join(recipe.methods),
        )
    wanted = config.arms or tuple(recipe.methods)
    for key, names in (("arms", wanted), ("baseline", (config.baseline,))):
        for name in names:
            if name not in known:
                raise ConfigError(
                    "no such method",
                    where=f"simulate.{key}",
                    must=" or ".join(known),
                    got=name,
                )
    for key, path in (
        ("finetune.reuse", recipe.finetune.reuse),
        ("tokenize.append_to", recipe.tokenize.append_to),
    ):
        if path:
            raise ConfigError(
                "a simulation makes its semantic IDs and language model itself",
                where=key,
                must="not set: what another run made may have seen the days that are simulated",
                got=path,
            )
    ordered = tuple(dict.fromkeys([config.baseline, *wanted]))
    # What [evaluate] compares is no matter of a simulation, and need not be among its arms.
    beside = {"methods", "variants", "evaluate"}
    values = recipe.model_dump(mode="json", exclude=beside, exclude_none=True)
    chosen = parse_recipe(
        {**values, "methods": {name: known[name].model_dump() for name in ordered}},
        where="simulate.arms",
    )
    references = REFERENCES_OF_WORLD if _in_world(recipe) else REFERENCES
    return chosen, (*ordered, *(references if config.references else ()))


def simulate(recipe: Recipe) -> Path:
    """Run the simulated A/B test of ``recipe``, or what is left of it; return its folder.

    Returns:
        the folder of the artifact: ``simulation.json`` and ``simulation.html``.

    Raises:
        ConfigError: no such arm, or nobody knows who would click what.
    """
    recipe, arms = with_arms(recipe)
    run = Run(recipe)
    store = Store(recipe.folder)
    settings = _settings(recipe, arms)
    mark = stores.fingerprint("simulate", settings, recipe.seed, _parents(run))
    if store.has(KEY, mark):
        log("simulate: done before")
        return store.checked(KEY, mark)
    with locked(recipe.folder):
        prepared = _prepared(run)
        started = time.monotonic()
        found = dict(_replications(recipe, prepared, arms, run))
        ordered = [found[n] for n in range(recipe.simulate.n_replications)]
        result = _result(recipe, arms, ordered, _parents(run))
        result["seconds"] = round(time.monotonic() - started, 1)
        with store.publish(
            KEY, Manifest("simulate", mark, settings, recipe.seed, _parents(run))
        ) as out:
            (out / RESULT).write_text(json.dumps(result, indent=0))
            write_page(result, out / PAGE)
    return store.checked(KEY, mark)


def load_result(folder: Path) -> dict[str, Any]:
    """Return what ``simulation.json`` in ``folder`` holds."""
    result: dict[str, Any] = json.loads((folder / RESULT).read_text())
    return result


# ---- what decides the result -----------------------------------------------------------------


def _settings(recipe: Recipe, arms: Sequence[str]) -> dict[str, Any]:
    """Return all settings that decide the result of ``arms``."""
    values = recipe.model_dump(mode="json")
    kept = ("prepare", "encode", "tokenize", "finetune", "generate", "simulate")
    return {
        **{name: values[name] for name in kept},
        "methods": {arm: _method(recipe, arm) for arm in arms},
        "revisions": {name: revision(name) for name in kept},
        "code": {**encoders(recipe), **weights(recipe, recipe.finetune.checkpoint)},
    }


def _method(recipe: Recipe, arm: str) -> dict[str, Any]:
    if arm in REFERENCES_OF_WORLD or arm == BEFORE:
        return {}
    method = recipe.methods[arm]
    label, train = recipe.label_of(method), recipe.train_of(method)
    used: dict[str, PluginConfig] = {"label": label, "train": train}
    if method.teacher:
        used["teacher"] = recipe.teacher_of(method)
    if method.adapts_teacher:
        used["pairs"] = recipe.label  # the unexposed pairs that it adapts to
    return {
        "anchors": method.anchors,
        **({"n_anchors": method.n_anchors} if method.n_anchors else {}),
        **{name: config.model_dump(mode="json") for name, config in used.items()},
        "revisions": {stage: revision(stage) for stage in ("teach", "label", "train")},
        "code": code(*used.values()),
    }


def _in_world(recipe: Recipe) -> bool:
    return recipe.prepare.source == "world" and not recipe.simulate.truth.file


def _parents(run: Run) -> dict[str, str]:
    if _in_world(run.recipe):
        return {}
    found, truth = {"dataset": run.steps["dataset"].fingerprint}, run.recipe.simulate.truth.file
    if not truth:
        return found
    if not Path(truth).is_file():
        raise ConfigError(
            "the truth cannot be read",
            where="simulate.truth.file",
            must="one Parquet file with the columns user, item, click",
            got=f"no file {truth}",
        )
    return {**found, "truth": hash_file(Path(truth))}


def _prepared(run: Run) -> Dataset | None:
    """Return the prepared data set whose truth is simulated on, None for the world."""
    if _in_world(run.recipe):
        return None
    from prerank.pipeline import execute

    step = run.steps["dataset"]
    if not run.done(step):
        execute(run, step)
    return run.dataset


def _blocks(recipe: Recipe, arm: str, parents: dict[str, str]) -> Path:
    """Return the folder of an arm's finished blocks: one for all that decides them, no more."""
    return _work(recipe, arm, [arm], parents)


def _common(recipe: Recipe, parents: dict[str, str]) -> Path:
    """Return the folder of what all arms share: the language model of each replication."""
    return _work(recipe, "common", [], parents)


def _work(recipe: Recipe, name: str, arms: Sequence[str], parents: dict[str, str]) -> Path:
    settings = _settings(recipe, arms)
    for key in NOT_OF_AN_ARM:
        del settings["simulate"][key]
    mark = stores.fingerprint("simulate-arm", settings, recipe.seed, parents)
    return recipe.folder / ".work" / "simulate" / f"{name}-{mark}"


# ---- replications ----------------------------------------------------------------------------


def _replications(
    recipe: Recipe, prepared: Dataset | None, arms: tuple[str, ...], run: Run
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (replication, arm -> counts) as they are finished."""
    numbers = range(recipe.simulate.n_replications)
    count = min(recipe.workers, len(numbers))
    if count == 1:
        for n in track(numbers, "simulate: replications"):
            yield n, live(recipe, prepared, arms, n, _parents(run))
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(count, context, _start_worker, (recipe.workers,)) as pool:
        waiting = {pool.submit(live, recipe, prepared, arms, n, _parents(run)): n for n in numbers}
        with given_up_when_stopped(pool):
            for future in track(as_completed(waiting), "simulate: replications", len(waiting)):
                yield waiting[future], future.result()


def _start_worker(workers: int) -> None:
    """Give each worker its share of the cores, and leave the terminal to the parent."""
    import torch

    die_with_parent()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    silence()


def live(
    recipe: Recipe,
    prepared: Dataset | None,
    arms: tuple[str, ...],
    number: int,
    parents: dict[str, str],
) -> dict[str, Any]:
    """Return arm -> {"days": counts of each day, "whole": counts of the test} of a replication.

    The key ``BEFORE`` holds the production policy's days before the arms started.
    """
    done = {arm: _blocks(recipe, arm, parents) / f"r{number:04d}.json" for arm in (BEFORE, *arms)}
    found = {arm: _read(file) for arm, file in done.items()}
    if None in found.values():
        work = _common(recipe, parents) / f"r{number:04d}"
        _live(Replication(recipe, prepared, number, work), done)
        found = {arm: _read(file) for arm, file in done.items()}
    return found


def _live(replication: Replication, done: dict[str, Path]) -> None:
    for arm, file in done.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        if _read(file) is not None:
            continue
        if arm == BEFORE:
            before = {"days": list(replication.before), "whole": {}}
            stores.write_whole(file, json.dumps(before))
            continue
        started = time.monotonic()
        _live_arm(replication, arm, file)
        took = time.monotonic() - started
        log(f"simulate: replication {replication.number}, {arm}: {took:.1f} s")


def _live_arm(replication: Replication, arm: str, file: Path) -> None:
    """Let an arm live to the last day, keeping its state on the way, and write its counts."""
    state = file.with_suffix(".safetensors")
    life = load_life(state) or replication.begin()
    while life.day <= replication.last_day:
        life = replication.live_a_day(life, replication.prerank_of(arm, life))
        if len(life.days) % replication.config.checkpoint_days == 0:
            save_life(state, life)
    lived = {"days": list(life.days), "whole": replication.finish(life)}
    stores.write_whole(file, json.dumps(lived))
    state.unlink(missing_ok=True)


def _read(file: Path) -> dict[str, Any] | None:
    """Return the counts that ``file`` holds, None if it is absent or no whole one."""
    try:
        counts: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return counts


# ---- the result ------------------------------------------------------------------------------


def _result(
    recipe: Recipe,
    arms: tuple[str, ...],
    replications: Sequence[dict[str, Any]],
    parents: dict[str, str],
) -> dict[str, Any]:
    config = recipe.simulate
    days = {arm: [one[arm]["days"] for one in replications] for arm in arms}
    whole = {arm: [one[arm]["whole"] for one in replications] for arm in arms}
    values = values_of(days, whole)
    lines = table(values, config.baseline, config.interval)
    methods = [arm for arm in arms if arm not in REFERENCES_OF_WORLD]
    pairs = against(values, methods, config.interval)
    before = [one[BEFORE]["days"] for one in replications]
    curves = {arm: [asdict(e) for e in by_day(days[arm], config.interval)] for arm in arms}
    return {
        "name": recipe.name,
        "shop": "world" if not parents else recipe.prepare.source,
        "arms": list(arms),
        "references": [arm for arm in arms if arm in REFERENCES_OF_WORLD],
        "baseline": config.baseline,
        "n_replications": len(replications),
        "n_days": config.n_days,
        "interval": config.interval,
        "metrics": dict(METRICS),
        "lines": as_json(lines),
        "against": {arm: {k: asdict(e) for k, e in row.items()} for arm, row in pairs.items()},
        "before": [asdict(e) for e in by_day(before, config.interval)],
        "by_day": curves,
        "counts": {
            arm: [{"days": d, "whole": w} for d, w in zip(days[arm], whole[arm], strict=True)]
            for arm in arms
        },
        "notes": _notes(recipe, before),
        "recipe": recipe.to_toml(),
        "versions": stores.versions(),
    }


def _notes(recipe: Recipe, before: Sequence[Sequence[Counts]]) -> list[str]:
    config, funnel = recipe.simulate, recipe.prepare.world
    shop = (
        "a simulated world with known click probabilities"
        if _in_world(recipe)
        else f"known clicks of real users ({recipe.prepare.source}); exposure is simulated"
    )
    of = "" if config.truth.users == "all" else f"{config.truth.users} "
    people = f", whose {of}users may live in others too" if not _in_world(recipe) else ""
    pages = f", up to {funnel.max_pages} pages a visit" if funnel.max_pages > 1 else ""
    return [
        f"{shop}: figures say how a method behaves in a closed loop, not what it earns in a shop",
        f"cascade: {funnel.n_recalled} recalled, {funnel.n_preranked} pre-ranked, "
        f"{funnel.n_ranked} ranked, {funnel.n_exposed} exposed{pages}; "
        f"{config.requests_per_day:,} visits a day",
        f"{config.n_log_days} days are logged under a popularity-heavy policy; then each arm "
        f"retrains every morning, from random weights, on its own logs of the last "
        f"{config.window} days; recall and ranker are production's in every arm",
        "encoder, semantic IDs and language model are fitted once, before the first request; "
        f"anchors are made anew from fresh histories, but never from days of the window, when it "
        f"has moved by {config.anchors_every} days; the encoder reads the texts of all items, "
        "released or not",
        "visits, recall, exploration and clicks of a pair follow the same random numbers in every "
        "arm; lifts are taken inside a replication",
        f"long tail: the {config.tail_share:.0%} of the items with fewest positives when the arms "
        "start",
        f"{len(before)} replications, each a shop of its own{people}",
    ]
