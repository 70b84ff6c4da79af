"""compare and its tuning, with the real optuna, on a tiny world without a language model."""

import json
import os
import pickle
import runpy
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from prerank import progress, tuning
from prerank.artifacts import TEST, VALIDATION, Record, Report
from prerank.comparison import before_training, compare, publish, resolve
from prerank.errors import BusyError, ConfigError, DataError
from prerank.evaluation.sheets import comparison_sheets
from prerank.evaluation.view import view
from prerank.lock import locked
from prerank.pipeline import Run
from prerank.plan import REVISIONS
from prerank.recipe import MethodConfig, Recipe, TuneConfig, load_recipe, parse_recipe
from prerank.store import read_report

ROOT = Path(__file__).resolve().parents[2]
TRIALS = 3
N_METHODS = 4
TINY = """
name = "tiny"
out = "{out}"
seeds = [0, 1]
[prepare.world]
n_users = 150
n_items = 200
[encode]
embedding_dim = 16
[tokenize]
codebook_size = 8
[train]
epochs = 1
embedding_dim = 8
[teacher]
model = "din"
hidden = [8]
[evaluate]
n_resamples = 50
controls = ["gpl-popular"]
[tune]
trials = 3
[methods.exposed-only]
label.source = "none"
[methods.gpl]
anchors = "history"
[methods.ukd]
teacher = "adapted"
label.source = "teacher"
train.objective = "ukd"
[variants]
uniform.label.confidence = "uniform"
"""
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def written(folder: Path, name: str = "runs") -> Path:
    path = folder / "tiny.toml"
    path.write_text(TINY.format(out=folder / name))
    return path


def finished(database: Path) -> dict[int, str]:
    """Return number -> last change of the finished trials in a database of studies."""
    if not database.exists():
        return {}
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        try:
            rows = connection.execute(
                "select trial_id, datetime_complete from trials where state = 'COMPLETE'"
            )
            return dict(rows.fetchall())
        except sqlite3.OperationalError:
            return {}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return load_recipe(written(tmp_path_factory.mktemp("compare")))


@pytest.fixture(scope="module")
def folder(recipe: Recipe) -> Path:
    return compare(recipe)


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "comparison.json").read_text())
    return found


def test_every_method_gets_the_same_budget(result: dict[str, Any], recipe: Recipe) -> None:
    tuned = result["extra"]["tuning"]
    assert set(tuned) == {"exposed-only", "gpl", "gpl-popular", "ukd"}
    assert {about["trials"] for about in tuned.values()} == {TRIALS}
    assert len(finished(recipe.folder / "tuning.db")) == N_METHODS * TRIALS
    shared = {"learning_rate", "weight_decay", "id_dropout"}
    assert set(tuned["exposed-only"]["settings"]) == shared
    assert set(tuned["gpl"]["settings"]) == {*shared, "pseudo_weight", "prior"}
    assert set(tuned["ukd"]["settings"]) == {*shared, "pseudo_weight", "adversary_weight"}
    assert all(about["best"] >= about["own"] for about in tuned.values())


def test_the_chosen_settings_are_trained_and_written(
    folder: Path, result: dict[str, Any], recipe: Recipe
) -> None:
    chosen = json.loads((folder / "tuning.json").read_text())
    assert chosen == result["extra"]["tuning"]
    manifest = json.loads((recipe.folder / "rankers/gpl/seed1/manifest.json").read_text())
    settings = dict(chosen["gpl"]["settings"])
    prior = settings.pop("prior")
    assert {key: manifest["config"][key] for key in settings} == settings
    written = load_recipe(folder / "recipe.toml")
    assert written.methods["gpl"].train == settings
    assert written.methods["gpl"].label["prior"] == prior
    labels = Run(written).labels(Run(written).rankers("gpl")[0])
    assert labels is not None and labels.fit["prior"] == prior
    assert labels.fit["prior_source"] == "given"
    weight = chosen["ukd"]["settings"]["adversary_weight"]
    assert written.teacher_of(written.methods["ukd"]).adversary_weight == weight


def test_all_formats_are_written(folder: Path) -> None:
    page = (folder / "comparison.html").read_text()
    assert "gpl-popular" in page and 'src="http' not in page
    assert "| **gpl** |" in (folder / "comparison.md").read_text()
    assert r"\textbf{gpl}" in (folder / "comparison.tex").read_text()


def test_report_holds_tests_costs_audit_and_ablation(result: dict[str, Any]) -> None:
    extra = result["extra"]
    pairs = {(t["method"], t["reference"]) for t in extra["evaluation"]["tests"]}
    assert {("gpl", "exposed-only"), ("exposed-only", "gpl"), ("gpl@uniform", "gpl")} <= pairs
    assert extra["costs"]["gpl"]["peak_bytes"] > 2**20
    assert (
        extra["costs"]["gpl"]["before_seconds"] > extra["costs"]["exposed-only"]["before_seconds"]
    )
    assert extra["audit"]["gpl"]["all"]["auc"] is not None
    assert extra["arms"]["gpl@uniform"]["changes"] == ['label.confidence = "uniform"']


def test_the_results_page_shows_what_the_benchmark_keeps(
    result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    needed = runpy.run_path(str(ROOT / "benchmarks" / "run_compare.py"))["needed"]
    measured = {"command": "prerank compare", "hardware": "two cores", "python": "3.11"}
    kept = {**measured, "seconds": 60.0, "peak_gib": 1.0, "seeds": 2, **needed(result)}
    file = tmp_path / "compare-tiny.json"
    file.write_text(json.dumps(kept))
    page = runpy.run_path(str(ROOT / "docs" / "generate.py"))["comparison_section"](file)
    assert "## Comparison: tiny" in page and "`prerank compare` on two cores" in page
    for sheet in comparison_sheets(view(read_report(file))):
        assert f"### tiny: {sheet.title}" in page
    full = comparison_sheets(view(Report(**report_of(result))))
    assert full == comparison_sheets(view(read_report(file)))


def report_of(result: dict[str, Any]) -> dict[str, Any]:
    return {
        "records": tuple(Record(**one) for one in result["records"]),
        "differences": tuple(Record(**one) for one in result["differences"]),
        "extra": result["extra"],
    }


def test_comparing_again_does_nothing_new(recipe: Recipe, folder: Path) -> None:
    database = recipe.folder / "tuning.db"
    trials, before = finished(database), (folder / "comparison.json").read_text()
    assert compare(recipe) == folder
    assert finished(database) == trials
    assert (folder / "comparison.json").read_text() == before


def test_more_trials_keep_those_there_are(recipe: Recipe, folder: Path) -> None:
    run = Run(
        resolve(recipe.model_copy(update={"tune": recipe.tune.model_copy(update={"trials": 4})}))
    )
    before = finished(recipe.folder / "tuning.db")
    about = tuning.tune_method(run, "gpl")
    after = finished(recipe.folder / "tuning.db")
    assert about["trials"] == 4 and len(after) == len(before) + 1
    assert before.items() <= after.items()


def test_killed_tuning_goes_on_and_ends_alike(folder: Path, tmp_path: Path) -> None:
    path = written(tmp_path)
    command = [sys.executable, "-m", "prerank", "-q", "compare", str(path)]
    database = tmp_path / "runs" / "tiny" / "tuning.db"
    process = subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(finished(database)) < TRIALS + 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    early = finished(database)
    assert early, "the tuning never began"
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    late = finished(database)
    assert early.items() <= late.items() and len(late) == N_METHODS * TRIALS
    undisturbed = json.loads((folder / "tuning.json").read_text())
    again = json.loads((tmp_path / "runs/tiny/comparison/tuning.json").read_text())
    for name, about in undisturbed.items():
        assert again[name]["settings"] == about["settings"]
        assert again[name]["best"] == pytest.approx(about["best"])


def test_test_rows_decide_nothing(recipe: Recipe, folder: Path) -> None:
    run = Run(resolve(recipe))
    pools = run.dataset.pools
    test = pools.split == TEST
    rows = tuning.validation_rows(run.dataset, "unexposed")
    assert len(rows) and (rows.split == VALIDATION).all()
    settings = tuning.own_settings(run.recipe, "gpl")
    value = tuning.objective(run, "gpl", settings, "unexposed")
    flipped = replace(pools, click=np.where(test, 1 - pools.click, pools.click).astype(np.int8))
    other = Run(resolve(recipe))
    other._cache.update(run._cache)
    other._cache["dataset"] = replace(run.dataset, pools=flipped)
    assert tuning.objective(other, "gpl", settings, "unexposed") == value
    turned = replace(pools, click=np.where(test, pools.click, 1 - pools.click).astype(np.int8))
    other._cache["dataset"] = replace(run.dataset, pools=turned)
    assert tuning.objective(other, "gpl", settings, "unexposed") != value


def test_methods_try_the_same_settings(recipe: Recipe, folder: Path) -> None:
    path = (recipe.folder / "tuning.db").resolve()
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    second: dict[str, dict[str, float]] = {}
    for study in optuna.get_all_study_summaries(storage):
        loaded = optuna.load_study(study_name=study.study_name, storage=storage)
        second[study.study_name] = loaded.trials[1].params
    assert len(second) >= N_METHODS
    found = {key for params in second.values() for key in params}
    assert found == set(tuning.RANGES) - {"in_batch_weight"}  # no method here has a batch softmax
    for key in found:
        tried = {params[key] for params in second.values() if key in params}
        assert len(tried) == 1, f"{key}: methods try different values in one trial"


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%3fb", "a{b}", "ü b"])
def test_the_studies_lie_in_the_runs_folder_whatever_it_is_called(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    tuned = parse_recipe({"out": name, "name": "tiny"})
    storage = tuning._storage(tuned)
    optuna.create_study(storage=storage, study_name="one")
    again = optuna.load_study(storage=tuning._storage(tuned), study_name="one")
    assert again.study_name == "one"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [tmp_path / name / "tiny" / "tuning.db"]


def test_startup_settings_cover_every_range() -> None:
    own = dict.fromkeys(tuning.RANGES, 0.3)
    points = [tuning.startup_settings(3, k, tuning.RANGES, own) for k in range(tuning.STARTUP)]
    assert points[0] == own
    for key, (low, high, is_log) in tuning.RANGES.items():
        values = np.array([point[key] for point in points[1:]])
        assert values.min() >= low and values.max() <= high
        scaled = np.log([low, high, *values]) if is_log else np.array([low, high, *values])
        share = (scaled[2:] - scaled[0]) / (scaled[1] - scaled[0])
        # Eight points of the sequence lie in eight strata; the first is not tried.
        assert len(np.unique(np.floor(share * tuning.STARTUP))) == tuning.STARTUP - 1


def test_ranges_hold_every_methods_own_settings(recipe: Recipe) -> None:
    odd = resolve(recipe).with_train("gpl", {"learning_rate": 0.5, "pseudo_weight": 0.01})
    ranges = tuning.space(odd)
    assert ranges["learning_rate"] == (5e-4, 0.5, True)
    assert ranges["pseudo_weight"] == (0.01, 10.0, True)


def test_every_method_with_an_adversary_has_its_weight_tuned(recipe: Recipe) -> None:
    many = resolve(recipe, "all")
    has = {name for name in many.methods if "adversary_weight" in tuning.own_settings(many, name)}
    assert has == {"ukd", "sida", "damcar"}
    assert tuning.own_settings(many.with_teach("ukd", {"adversary_weight": 0.2}), "ukd")[
        "adversary_weight"
    ] == pytest.approx(0.2)
    off = many.with_train("damcar", {"adversary_weight": 0.0})
    assert "adversary_weight" not in tuning.own_settings(off, "damcar")


def test_a_trial_of_an_adapted_teacher_trains_its_own(recipe: Recipe, folder: Path) -> None:
    run = Run(resolve(recipe))
    settings = tuning.own_settings(run.recipe, "ukd")
    stands = {key: run.store.manifest(key) for key in ("teachers/adapted", "labels/ukd")}
    values = [
        tuning.objective(run, "ukd", {**settings, "adversary_weight": weight}, "unexposed")
        for weight in (settings["adversary_weight"], 30.0)
    ]
    assert values[0] == json.loads((folder / "tuning.json").read_text())["ukd"]["own"]
    assert values[0] != values[1]
    assert stands == {key: run.store.manifest(key) for key in stands}
    assert not list((recipe.folder / ".work").glob("new-*"))


def test_a_chosen_weight_makes_a_teacher_of_the_methods_own(recipe: Recipe) -> None:
    one = resolve(recipe, "sida,kd-all,damcar")
    settings = {**tuning.own_settings(one, "ukd"), "adversary_weight": 0.25}
    run = Run(tuning.with_method_settings(one, "ukd", settings))
    ukd = run.ancestors(run.rankers("ukd")[0])
    sida = run.ancestors(run.rankers("sida")[0])
    assert "teachers/adapted-of-ukd" in ukd and "teachers/adapted" in sida
    assert run.steps["teachers/adapted-of-ukd"].config["train"]["adversary_weight"] == 0.25
    assert run.recipe.methods["ukd"].train["pseudo_weight"] == settings["pseudo_weight"]
    same = Run(tuning.with_method_settings(one, "ukd", tuning.own_settings(one, "ukd")))
    assert "teachers/adapted" in same.ancestors(same.rankers("ukd")[0])
    damcar = tuning.with_method_settings(one, "damcar", {"adversary_weight": 0.25})
    assert damcar.train_of(damcar.methods["damcar"]).adversary_weight == 0.25


def test_a_softmax_beside_the_loss_is_a_methods_own(recipe: Recipe) -> None:
    one = resolve(recipe, "kd-all").model_copy(update={"teacher": {}})
    shared = one.model_copy(update={"train": one.train.model_copy(update={"in_batch_weight": 0.5})})
    kd = shared.methods["kd-all"]
    assert shared.train_of(kd).in_batch_weight == 0.5
    assert shared.teacher_of(kd).in_batch_weight == 0.0
    asked = shared.model_copy(update={"teacher": {"in_batch_weight": 0.1}})
    assert asked.teacher_of(kd).in_batch_weight == 0.1


def test_who_reads_a_prior_has_it_tuned_from_the_estimated_one(
    recipe: Recipe, folder: Path
) -> None:
    many = resolve(recipe, "all").with_label("gpl", {"prior": 0.3})
    has = {name for name, method in many.methods.items() if many.label_of(method).reads_prior}
    assert {"gpl", "gpl-joint", "gpl+kd", "muda", "sida"} <= has
    assert not has & {"exposed-only", "negative-sampling", "kd-all", "ukd", "dr", "in-batch-logq"}
    assert tuning.own_settings(many, "gpl")["prior"] == 0.3
    assert "prior" not in tuning.own_settings(many, "muda")  # the data must tell it
    run = Run(resolve(recipe))
    assert tuning.first_settings(run, "ukd") == tuning.own_settings(run.recipe, "ukd")
    own, settings = tuning.first_settings(run, "gpl"), tuning.own_settings(run.recipe, "gpl")
    estimated = tuning.objective(run, "gpl", settings, "unexposed")
    assert tuning.objective(run, "gpl", own, "unexposed") == estimated
    assert tuning.objective(run, "gpl", own | {"prior": 0.01}, "unexposed") != estimated


def test_code_that_trains_otherwise_is_tuned_anew(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(resolve(recipe))
    study = tuning._mark(run, "gpl", "unexposed", tuning.RANGES)
    monkeypatch.setitem(REVISIONS, "train", 7)  # type: ignore[arg-type]
    assert tuning._mark(run, "gpl", "unexposed", tuning.RANGES) != study


WITHOUT_LAMBDA = ("exposed-only", "kd-exposed", "ips", "snips", "dr", "in-batch-logq")
WITH_LAMBDA = ("negative-sampling", "kd-all", "tl", "ukd", "damcar")


@pytest.mark.parametrize("name", [*WITHOUT_LAMBDA, *WITH_LAMBDA])
def test_lambda_is_tuned_exactly_where_it_is_read(recipe: Recipe, folder: Path, name: str) -> None:
    run = Run(resolve(recipe, name))
    rows = tuning.validation_rows(run.dataset, "unexposed")
    light, heavy = (
        tuning._trained_scores(run, name, run.recipe.with_train(name, {"pseudo_weight": w}), rows)
        for w in (0.5, 4.0)
    )
    is_read = not np.array_equal(light, heavy)
    assert is_read == ("pseudo_weight" in tuning.own_settings(run.recipe, name))


def test_the_batch_softmax_is_tuned_where_there_is_one(recipe: Recipe) -> None:
    many = resolve(recipe, "in-batch-logq,gpl")
    assert tuning.own_settings(many, "in-batch-logq")["in_batch_weight"] == 1
    assert "in_batch_weight" not in tuning.own_settings(many, "gpl")


def test_lambda_of_zero_is_not_tuned(recipe: Recipe) -> None:
    none = resolve(recipe).with_train("gpl", {"pseudo_weight": 0.0})
    assert "pseudo_weight" not in tuning.own_settings(none, "gpl")


def test_tuning_without_validation_rows_is_told(recipe: Recipe, folder: Path) -> None:
    dataset = Run(resolve(recipe)).dataset
    kept = dataset.pools.take(dataset.pools.split == TEST)
    with pytest.raises(ConfigError, match="nothing to tune on"):
        tuning.deciding_pool(replace(dataset, pools=kept), "")
    with pytest.raises(ConfigError, match=r"tune\.pool"):
        tuning.deciding_pool(dataset, "nowhere")


@pytest.mark.parametrize("click", [0, 1])
def test_tuning_where_gauc_is_undefined_is_told_before_anything_is_made(
    recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch, click: int
) -> None:
    run = Run(resolve(recipe))
    pools = run.dataset.pools
    alike = replace(pools, click=np.where(pools.split == VALIDATION, click, pools.click))
    dataset = replace(run.dataset, pools=alike)
    with pytest.raises(ConfigError, match="nothing to tune on"):
        tuning.deciding_pool(dataset, "unexposed")
    monkeypatch.setattr(Run, "dataset", dataset)
    monkeypatch.setattr("prerank.comparison.make", pytest.fail)
    with pytest.raises(ConfigError, match="nothing to tune on"):
        compare(recipe)


@pytest.fixture
def hopeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe; prerank knows one more method, whose labels this data does not allow."""
    method = MethodConfig(anchors="history", label={"map": "joint"})
    monkeypatch.setattr("prerank.comparison.all_methods", lambda truth=False: {"hopeless": method})

    def refuse(*_: Any) -> None:
        raise DataError("nothing to fit on", got="0 clicks", hint="hold out more exposures")

    monkeypatch.setattr("prerank.labels.joint._require_both", refuse)
    return load_recipe(written(tmp_path), ["seeds=[0]", "variants={}"])


@pytest.mark.parametrize("trials", [0, 1])
def test_of_all_methods_those_without_labels_are_left_out(
    hopeless: Recipe, trials: int, capsys: pytest.CaptureFixture[str]
) -> None:
    progress.silence(False)
    tune = hopeless.tune.model_copy(update={"trials": trials})
    folder = compare(hopeless.model_copy(update={"tune": tune}), "all")
    note = "hopeless left out: nothing to fit on (0 clicks)"
    assert f"compare: {note}" in capsys.readouterr().err.splitlines()
    result = json.loads((folder / "comparison.json").read_text())
    assert result["extra"]["notes"][-1] == note
    assert "gpl" in result["extra"]["evaluation"]["methods"]
    assert "hopeless" not in result["extra"]["evaluation"]["methods"]
    assert f"- {note}" in (folder / "comparison.md").read_text()
    assert note in (folder / "comparison.html").read_text()
    assert "hopeless" not in load_recipe(folder / "recipe.toml").methods


def test_a_method_asked_for_by_name_is_not_left_out(hopeless: Recipe) -> None:
    with pytest.raises(DataError, match="the labels of hopeless cannot be made") as caught:
        compare(hopeless, "hopeless")
    assert "hold out more exposures; or leave hopeless out of --methods" in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))  # workers send it to the first process
    assert (again.key, again.why, again.hint) == (
        "labels/hopeless",
        "nothing to fit on (0 clicks)",
        caught.value.hint,
    )


def test_what_must_stand_before_training(recipe: Recipe) -> None:
    keys = before_training(resolve(recipe))
    assert keys[0] == "dataset" and "anchors/history" in keys and "teachers/adapted" in keys
    assert not [key for key in keys if key.startswith("labels/")]  # each trial makes its own
    assert not [key for key in keys if key.startswith("rankers/")]


def test_the_ceiling_can_be_asked_for_by_name(recipe: Recipe) -> None:
    folder = compare(recipe.model_copy(update={"tune": TuneConfig(), "name": "c"}), "true-labels")
    result = json.loads((folder / "comparison.json").read_text())
    assert "true-labels" in result["extra"]["evaluation"]["methods"]


def test_nobody_takes_the_folder_while_a_comparison_is_written(
    recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prerank.evaluation import report_html

    write = report_html.write_comparison

    def interrupted(*args: Any, **kwargs: Any) -> None:
        with pytest.raises(BusyError), locked(recipe.folder):
            pass
        write(*args, **kwargs)

    monkeypatch.setattr(report_html, "write_comparison", interrupted)
    again = publish(recipe, recipe.folder / "report", {}, ["published again"])
    assert "published again" in (again / "comparison.md").read_text()
