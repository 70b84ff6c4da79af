"""Equal tuning: every method gets the same number of trials over the same settings.

A trial trains one pre-ranker with one training seed, and before it the teacher and the labels where
a setting decides them; what decides is GAUC over the validation rows of one pool. Test rows are
never read. The first trial is the recipe's own settings; those up to `STARTUP` are points that
cover the ranges evenly, the same points for every method, so that no method owes its place to a
luckier draw; what comes after follows each method's own trials (TPE). The studies lie in the run's
folder (SQLite, one study a method), so a killed tuning goes on with the trials it lacks; trial k of
a method has a seed of its own, so it ends as an undisturbed one does.
"""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import qmc

from prerank import pipeline
from prerank import store as stores
from prerank.artifacts import VALIDATION, Dataset, FloatArray, Pools
from prerank.data.auc import grouped_auc
from prerank.errors import ConfigError, DivergedError, MissingExtraError
from prerank.evaluation.extra import TrialExtra
from prerank.labels.label import own_prior
from prerank.pipeline import Run
from prerank.plan import revision
from prerank.progress import log
from prerank.recipe import Recipe
from prerank.seeds import derive, rng
from prerank.store import Store

STUDIES = "tuning.db"
STARTUP = 8
"""Trials chosen without regard to earlier ones, the first being the recipe's own settings."""
RANGES: Mapping[str, tuple[float, float, bool]] = {
    "learning_rate": (5e-4, 2e-2, True),
    "weight_decay": (0.0, 0.1, False),
    "id_dropout": (0.0, 0.5, False),
    "pseudo_weight": (0.1, 10.0, True),
    "in_batch_weight": (0.03, 3.0, True),
    "adversary_weight": (0.0003, 0.3, True),
    "prior": (0.005, 0.5, True),
}
"""Key of [train], or `prior` of [label] -> low, high, whether on a log scale.

The same for every method that has it."""


@dataclass(frozen=True)
class TrialStore(Store):
    """What one trial makes, in a folder of its own; behind it the run's store, only to be read."""

    behind: Store

    def has(self, key: str, fingerprint: str, parents: Mapping[str, str] | None = None) -> bool:
        """Say whether the artifact was made by the trial or stands in the run."""
        own = super().has(key, fingerprint, parents)
        return own or self.behind.has(key, fingerprint, parents)

    def checked(self, key: str, fingerprint: str | None = None) -> Path:
        """Return the folder of the trial's artifact, else of the run's; raise if neither stands."""
        if fingerprint is not None and super().has(key, fingerprint):
            return super().checked(key, fingerprint)
        return self.behind.checked(key, fingerprint)


def space(recipe: Recipe) -> dict[str, tuple[float, float, bool]]:
    """Return `RANGES`, widened for all methods alike so that each one's own settings lie inside.

    An estimated prior is not known yet; it is one for all methods.
    """
    found = dict(RANGES)
    for name in recipe.methods:
        for key, value in own_settings(recipe, name).items():
            low, high, is_log = found[key]
            found[key] = (min(low, value), max(high, value), is_log)
    return found


def own_settings(recipe: Recipe, name: str) -> dict[str, float]:
    """Return the recipe's own values of what is tuned.

    No lambda where the loss does not read it, and no weight of an adversary where there is none;
    nor where it is 0, which turns off what it weighs. No prior that the data must tell:
    `first_settings` has it.
    """
    method = recipe.methods[name]
    config, label = recipe.train_of(method), recipe.label_of(method)
    found = {key: float(getattr(config, key)) for key in RANGES if key != "prior"}
    if label.reads_prior and isinstance(label.prior, float):
        found["prior"] = label.prior
    adversary = recipe.teacher_of(method) if method.adapts_teacher else config
    found["adversary_weight"] = adversary.adversary_weight * adversary.has_adversary
    found["pseudo_weight"] *= config.reads_weight(has_labels=label.source != "none")
    weights = ("pseudo_weight", "in_batch_weight", "adversary_weight")
    return {key: value for key, value in found.items() if value > 0 or key not in weights}


def first_settings(run: Run, name: str) -> dict[str, float]:
    """Return `own_settings`, and the prior where the data must tell it: the first trial's."""
    found, config = own_settings(run.recipe, name), run.recipe.label_of(run.recipe.methods[name])
    if config.reads_prior and "prior" not in found:
        step = run.steps[run.parents(run.rankers(name)[0], "label")[0]]
        found["prior"] = own_prior(run.dataset, config, step.seed)
    return found


def deciding_pool(dataset: Dataset, wanted: str) -> str:
    """Return the pool whose validation rows decide.

    Raises:
        ConfigError: no validation user of (such) a pool has both a click and none, so GAUC is
            undefined.
    """
    has = [name for name in dataset.pools.pools if _tells(validation_rows(dataset, name))]
    first = [name for name in has if "unexposed" in name] + has
    if (wanted and wanted not in has) or not first:
        raise ConfigError(
            "nothing to tune on",
            where="tune.pool",
            must=" or ".join(has)
            or "a pool where a validation user has both a click and none, and there is none",
            got=wanted or "no pool asked for",
            hint="compare without --trials, or hold out more validation users",
        )
    return wanted or first[0]


def _tells(rows: Pools) -> bool:
    """Say whether the rows have a GAUC: a user with both a clicked and a not clicked row."""
    values, _ = grouped_auc(rows.user, rows.click, np.zeros(len(rows)))
    return not bool(np.isnan(values).all())


def tune(recipe: Recipe) -> dict[str, TrialExtra]:
    """Choose settings for every method; all steps before training must be done.

    Returns:
        Method -> its best settings (of [train]), GAUC with them and with the recipe's own.

    Raises:
        ConfigError: no validation rows to decide by.
        MissingExtraError: optuna is not installed.
    """
    run = Run(recipe)
    pool = deciding_pool(run.dataset, recipe.tune.pool)
    log(f"tune: {recipe.tune.trials} trials for each of {len(recipe.methods)} methods, by {pool}")
    _storage(recipe)  # made once, before several processes open it
    names = list(recipe.methods)
    found = dict(pipeline.in_workers(run, tune_method, names))
    return {name: found[name] for name in names}


def with_settings(recipe: Recipe, chosen: Mapping[str, TrialExtra]) -> Recipe:
    """Return the recipe with each method's chosen settings."""
    for name, about in chosen.items():
        recipe = with_method_settings(recipe, name, about["settings"])
    return recipe


def with_method_settings(recipe: Recipe, name: str, settings: Mapping[str, float]) -> Recipe:
    """Return the recipe with settings of one method: those of the adversary go to who has it."""
    if "prior" in settings:
        recipe = recipe.with_label(name, {"prior": settings["prior"]})
        settings = {key: value for key, value in settings.items() if key != "prior"}
    if not recipe.methods[name].adapts_teacher:
        return recipe.with_train(name, settings)
    of_teacher = {key: value for key, value in settings.items() if key == "adversary_weight"}
    of_student = {key: value for key, value in settings.items() if key not in of_teacher}
    return recipe.with_train(name, of_student).with_teach(name, of_teacher)


def tune_method(run: Run, name: str) -> TrialExtra:
    """Run the trials that the method lacks and return its best settings."""
    optuna = _optuna()
    recipe = run.recipe
    pool, ranges = deciding_pool(run.dataset, recipe.tune.pool), space(recipe)
    own = first_settings(run, name)
    distributions = {
        key: optuna.distributions.FloatDistribution(
            min(low, own[key]), max(high, own[key]), log=is_log
        )
        for key, (low, high, is_log) in ranges.items()
        if key in own
    }
    study = optuna.create_study(
        storage=_storage(recipe),
        study_name=f"{name}-{_mark(run, name, pool, ranges)}",
        direction="maximize",
        load_if_exists=True,
    )
    complete = optuna.trial.TrialState.COMPLETE
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # killed while it ran
    while (done := len(study.get_trials(deepcopy=False, states=(complete,)))) < recipe.tune.trials:
        started = time.monotonic()
        if done < STARTUP:
            params = startup_settings(recipe.seed, done, ranges, own)
            value = objective(run, name, params, pool)
            trial = optuna.trial.create_trial(
                params=params,
                distributions=distributions,
                value=value,
                user_attrs={"seconds": time.monotonic() - started},
            )
            study.add_trial(trial)
        else:
            seed = derive(recipe.seed, "tune", name, done) % 2**32
            study.sampler = optuna.samplers.TPESampler(n_startup_trials=0, seed=seed)
            trial = study.ask(distributions)
            value = objective(run, name, trial.params, pool)
            trial.set_user_attr("seconds", time.monotonic() - started)
            study.tell(trial, value)
        log(f"tune      {name:32s} trial {done + 1}: GAUC {value:.4f}")
    trials = study.get_trials(deepcopy=False, states=(complete,))[: recipe.tune.trials]
    best = max(trials, key=lambda trial: (trial.value, -trial.number))
    return {
        "trials": len(trials),
        "pool": pool,
        "own": trials[0].value,
        "best": best.value,
        "settings": dict(best.params),
        "seconds": round(sum(trial.user_attrs["seconds"] for trial in trials), 1),
    }


def startup_settings(
    seed: int,
    trial: int,
    ranges: Mapping[str, tuple[float, float, bool]],
    own: Mapping[str, float],
) -> dict[str, float]:
    """Return what trial 0, 1, ..., `STARTUP` - 1 tries of the keys that a method has.

    Trial 0 is its own settings. The others are points of one scrambled Sobol sequence over the
    ranges, so a key has the same value in trial k of every method.
    """
    if trial == 0:
        return dict(own)
    points = qmc.Sobol(len(RANGES), rng=rng(seed, "tune", "startup")).random(STARTUP)
    drawn = dict(zip(RANGES, points[trial].tolist(), strict=True))
    return {key: _within(ranges[key], drawn[key]) for key in ranges if key in own}


def _within(wanted: tuple[float, float, bool], share: float) -> float:
    low, high, is_log = wanted
    return low * (high / low) ** share if is_log else low + (high - low) * share


def objective(run: Run, name: str, settings: Mapping[str, float], pool: str) -> float:
    """Return GAUC over the validation rows of ``pool`` after training with ``settings``.

    One training seed, the recipe's first. A pre-ranker that diverges gets 0.
    """
    rows = validation_rows(run.dataset, pool)
    try:
        scores = _trained_scores(run, name, with_method_settings(run.recipe, name, settings), rows)
    except DivergedError:
        return 0.0
    if not np.isfinite(scores).all():
        return 0.0
    values, _ = grouped_auc(rows.user, rows.click, scores)
    return float(np.nanmean(values))


def validation_rows(dataset: Dataset, pool: str) -> Pools:
    """Return the validation rows of one pool."""
    pools = dataset.pools
    return pools.take((pools.split == VALIDATION) & (pools.pool == pools.pools.index(pool)))


def _trained_scores(run: Run, name: str, recipe: Recipe, rows: Pools) -> FloatArray:
    """Return (N,) logits of the pre-ranker of ``recipe``; what it needs is made for it alone."""
    from prerank.ranking.pre_ranker import PreRanker

    with tempfile.TemporaryDirectory(dir=run.recipe.folder / ".work", prefix="new-") as folder:
        varied = run.varied(recipe, TrialStore(Path(folder), run.store))
        step = varied.rankers(name)[0]
        before = varied.ancestors(step) - {step.key}
        for needed in varied.steps.values():
            if needed.key in before and not varied.done(needed):
                pipeline.execute(varied, needed)
        out = Path(folder) / "trained"
        out.mkdir()
        pipeline.train(varied, step, out)
        return PreRanker.load(out, run.dataset, varied.embeddings(step)).score_pools(rows)


def _mark(run: Run, name: str, pool: str, ranges: Mapping[str, Any]) -> str:
    """Return a hash of all that decides a trial besides the settings tried."""
    step = run.rankers(name)[0]
    fixed = {key: value for key, value in step.config.items() if key not in RANGES}
    own = own_settings(run.recipe, name)
    about = {
        "train": fixed,
        "pool": pool,
        "ranges": ranges,
        "own": own,
        "second": startup_settings(run.recipe.seed, 1, ranges, own),  # how settings are found
    }
    return stores.fingerprint("tune", about, step.seed, step.parents, revision(step.stage))


def _storage(recipe: Recipe) -> Any:
    """Return the studies in the run's folder; no URL says where: `?`, `#` or `%` may be in it."""
    file = (recipe.folder / STUDIES).resolve()
    opened = partial(sqlite3.connect, file, check_same_thread=False)
    return _optuna().storages.RDBStorage(f"sqlite:///{STUDIES}", {"creator": opened})


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise MissingExtraError(
            "tuning needs optuna", where="tune.trials", hint="pip install 'prerank[tune]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
