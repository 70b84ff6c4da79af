"""compare: every method of a recipe under equal conditions, read on test once.

The same plan, store and report as ``run``; around it more methods, more seeds, the same tuning
budget for each of them, and the tables in the formats that papers and pull requests want.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from prerank import store as stores
from prerank.artifacts import Report
from prerank.errors import ConfigError
from prerank.evaluation.extra import TrialExtra, with_extra
from prerank.evaluation.significance import smallest_resamples
from prerank.lock import locked
from prerank.pipeline import LabelError, Run, make, report_of, run_recipe
from prerank.progress import log
from prerank.recipe import MethodConfig, Recipe, all_methods, parse_recipe
from prerank.remote import store_at
from prerank.store import Manifest, fingerprint

KEY = "comparison"
KEPT = (
    "title",
    "evaluation",
    "audit",
    "costs",
    "arms",
    "unearned",
    "tuning",
    "notes",
    "versions",
    "stages",
)
"""Keys of a report's extra that comparison.json keeps; the page report.html has the others."""


def resolve(recipe: Recipe, methods: str = "", seeds: int = 0, truth: bool = False) -> Recipe:
    """Return the recipe as it is compared.

    Args:
        recipe: the recipe; what it says of a method stays.
        methods: empty for the recipe's own, ``all``, or names separated by commas to add.
        seeds: number of training seeds; 0 as the recipe says.
        truth: whether the data knows the truth of unexposed candidates (for the ceiling).

    The baseline, the main method and its controls are added where the recipe lacks them. Every
    method is compared with the first baseline and with the main method, with enough bootstrap
    draws that Holm's correction can leave something standing.

    Raises:
        ConfigError: a method that neither the recipe nor prerank knows.
    """
    known = {**all_methods(truth=truth), **recipe.methods}
    config = recipe.evaluate
    asked = list(known) if methods == "all" else [one for one in methods.split(",") if one.strip()]
    always = [*config.baselines, config.method, *config.controls]
    for name in asked:
        if name.strip() not in known:
            raise ConfigError(
                "unknown method",
                where="--methods",
                must="all, or some of " + ", ".join(known),
                got=name,
            )
    wanted = {*recipe.methods, *(one.strip() for one in asked), *always}
    chosen: dict[str, MethodConfig] = {
        name: method for name, method in known.items() if name in wanted
    }
    against = [name for name in (*config.baselines, config.method) if name in chosen]
    draws = smallest_resamples(max(len(chosen), len(recipe.arms())), config.interval)
    update: dict[str, Any] = {
        "methods": chosen,
        "evaluate": config.model_copy(
            update={
                "baselines": tuple(dict.fromkeys(against)),
                "n_resamples": max(config.n_resamples, draws),
            }
        ),
    }
    if seeds:
        update["seeds"] = tuple(range(seeds))
    return parse_recipe(recipe.model_copy(update=update).model_dump(), where="compare")


def knows_truth(recipe: Recipe) -> bool:
    """Say whether the prepared data knows the true click of unexposed candidates."""
    run = Run(recipe)
    if not run.done(run.steps["dataset"]):
        return False
    return bool((~np.isnan(run.dataset.candidates.truth)).any())


def compare(recipe: Recipe, methods: str = "", seeds: int = 0) -> Path:
    """Compare methods and return the folder of the result.

    Tunes each method on validation where ``recipe.tune.trials`` asks for it, trains all seeds
    with the settings chosen, and evaluates on test. What is done already is skipped. Of ``all``
    methods, those whose labels this data does not allow are left out, and a note says so.

    Raises:
        ConfigError: unknown methods, or tuning without validation rows.
        DataError: the labels of a method that was asked for by name cannot be made.
        MissingExtraError: tuning without optuna.
    """
    resolve(recipe, methods, seeds, truth=True)  # a wrong name is told before anything runs
    run_recipe(recipe, ("prepare",))
    named = set(resolve(recipe, "" if methods == "all" else methods, truth=True).methods)
    recipe = resolve(recipe, methods, seeds, knows_truth(recipe))
    left_out: list[str] = []
    while True:
        try:
            tuned, chosen, report = tuned_and_run(recipe)
        except LabelError as error:
            gone = made_from(recipe, error.key)
            if not gone or gone & named:
                raise
            told = [f"{name} left out: {error.why}" for name in sorted(gone)]
            log("\n".join(f"compare: {one}" for one in told))
            left_out += told
            kept = {name: one for name, one in recipe.methods.items() if name not in gone}
            recipe = recipe.model_copy(update={"methods": kept})
        else:
            return publish(tuned, report, chosen, left_out)


def made_from(recipe: Recipe, key: str) -> set[str]:
    """Return the methods whose pre-rankers are made from the artifact ``key``."""
    run = Run(recipe)
    return {name for name in recipe.methods if key in run.ancestors(run.rankers(name)[0])}


def tuned_and_run(recipe: Recipe) -> tuple[Recipe, dict[str, TrialExtra], Path]:
    """Tune every method where the recipe asks for it and run all.

    Returns:
        the recipe with the settings chosen, these settings, and the folder of the report.
    """
    chosen: dict[str, TrialExtra] = {}
    if recipe.tune.trials:
        from prerank import tuning

        tuning.deciding_pool(Run(recipe).dataset, recipe.tune.pool)  # told before anything is made
        with locked(recipe.folder):
            make(Run(recipe), before_training(recipe))
            chosen = tuning.tune(recipe)
        recipe = tuning.with_settings(recipe, chosen)
    return recipe, chosen, report_of(recipe, run_recipe(recipe))


def before_training(recipe: Recipe) -> list[str]:
    """Return the keys that one pre-ranker of every method is made from, in the order of the plan.

    Among them are teachers, which are pre-rankers too; not among them labels whose prior is tuned,
    or whose teacher is: each trial makes its own.
    """
    run = Run(recipe)
    needed = set[str]()
    for name, method in recipe.methods.items():
        step = run.rankers(name)[0]
        tuned = recipe.label_of(method).reads_prior or method.adapts_teacher
        tried = run.parents(step, "label") if tuned else []
        needed |= run.ancestors(step) - {step.key, *tried}
    return [key for key in run.steps if key in needed]


def publish(
    recipe: Recipe, folder: Path, tuning: Mapping[str, TrialExtra], left_out: Sequence[str] = ()
) -> Path:
    """Write the comparison of a finished run in all formats; return its folder.

    Args:
        folder: of the run's report.
        left_out: notes on methods that are not there.
    """
    from prerank.evaluation.formats import to_latex, to_markdown
    from prerank.evaluation.report_html import write_comparison
    from prerank.evaluation.sheets import comparison_sheets
    from prerank.evaluation.summary import summarise
    from prerank.evaluation.view import view

    report, made = stores.load(folder, Report), stores.read_manifest(folder)
    assert made is not None  # it has just been read
    if tuning:
        report = with_extra(report, {"tuning": dict(tuning)})
    if left_out:
        report = with_extra(report, {"notes": [*report.extra["notes"], *left_out]})
    parents = {"report": made.fingerprint}
    config = {"tuning": dict(tuning), **({"left_out": list(left_out)} if left_out else {})}
    mark = fingerprint("compare", config, recipe.seed, parents)
    seen = view(report)
    sheets = comparison_sheets(seen)
    said = "".join(f"- {sentence}\n" for sentence in [*summarise(seen), *seen.extra["notes"]])
    manifest = Manifest("compare", mark, config, recipe.seed, parents)
    store = store_at(recipe.folder, recipe.uri)
    with locked(recipe.folder), store.publish(KEY, manifest) as out:
        kept = {key: report.extra[key] for key in KEPT if key in report.extra}
        written = {"name": recipe.name, **asdict(report), "extra": kept}
        (out / "comparison.json").write_text(json.dumps(written, indent=1))
        text = f"# {recipe.name}\n\n{said}\n" + "\n".join(to_markdown(one) for one in sheets)
        (out / "comparison.md").write_text(text, encoding="utf-8")
        (out / "comparison.tex").write_text(
            "% needs \\usepackage{booktabs}\n" + "\n".join(map(to_latex, sheets)), encoding="utf-8"
        )
        write_comparison(report, out / "comparison.html", title=recipe.name)
        if tuning:
            (out / "tuning.json").write_text(json.dumps(dict(tuning), indent=1))
        # The recipe with the chosen settings: `prerank run` on it is the same run.
        (out / "recipe.toml").write_text(recipe.to_toml())
    return store.path(KEY)
