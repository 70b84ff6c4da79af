"""The command line, as a user meets it: a tiny world through every stage."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from prerank.doctor import print_examination
from prerank.lock import locked

ROOT = Path(__file__).parents[2]
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

[finetune]
hidden_size = 16
n_layers = 1
n_heads = 2
epochs = 1

[generate]
n_anchors = 5

[train]
epochs = 1

[evaluate]
n_resamples = 50

[methods.exposed-only]
label.source = "none"
[methods.gpl]
anchors = "llm"
[methods.gpl-joined]
anchors = "llm+history"
[methods.gpl-shuffled]
anchors = "shuffled"
"""
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # equal bytes need equal threads
STAGES = ["prepare", "encode", "tokenize", "finetune", "generate", "label", "train", "evaluate"]


def prerank(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prerank", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env=ONE_THREAD, timeout=300, **options
    )


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    path = folder / "tiny.toml"
    path.write_text(TINY.format(out=folder / "runs"))
    return path


@pytest.fixture(scope="module")
def first(recipe: Path) -> dict[str, Any]:
    done = prerank("run", recipe, "--json")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_run_makes_every_stage(first: dict[str, Any]) -> None:
    assert list(dict.fromkeys(step["stage"] for step in first["steps"])) == STAGES
    assert {step["status"] for step in first["steps"]} == {"made"}


def test_records_have_the_stable_keys(first: dict[str, Any]) -> None:
    keys = {"method", "pool", "segment", "metric", "value", "low", "high", "n", "seeds"}
    assert all(keys <= record.keys() for record in first["records"])
    assert {r["method"] for r in first["records"]} >= {"exposed-only", "gpl", "gpl-joined"}
    assert {"auc", "gauc", "hr@10", "ndcg@10"} <= {r["metric"] for r in first["records"]}


def test_report_page_is_self_contained(first: dict[str, Any]) -> None:
    page = (Path(first["folder"]) / "report" / "report.html").read_text()
    assert "<html" in page and "gpl-joined" in page
    assert 'src="http' not in page and 'href="http' not in page.split("</style>")[0]


def tracked_lines(run: dict[str, Any]) -> list[dict[str, Any]]:
    text = (Path(run["folder"]) / "tracking" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_figures_are_written_as_json_lines(first: dict[str, Any]) -> None:
    lines = tracked_lines(first)
    values = {(line["metric"], line["step"]): line["value"] for line in lines}
    assert len(values) == len(lines)
    assert values["train/gpl/seed1/loss_al", 0] > 0 and values["finetune/loss", 0] > 0
    by_name = {
        (r["metric"], r["pool"], r["segment"]): r["value"]
        for r in first["records"]
        if r["method"] == "gpl"
    }
    assert values["test/gauc/unexposed/tail", 0] == by_name["gauc", "unexposed", "tail"]
    timed = {name.removeprefix("time/") for name, _ in values if name.startswith("time/")}
    assert {"prepare", "encode", "tokenize", "finetune", "label/gpl", "evaluate"} <= timed


def test_second_run_does_nothing(recipe: Path, first: dict[str, Any]) -> None:
    before = tracked_lines(first)
    again = json.loads(prerank("run", recipe, "--json").stdout)
    assert {step["status"] for step in again["steps"]} == {"done before"}
    assert [s["fingerprint"] for s in again["steps"]] == [s["fingerprint"] for s in first["steps"]]
    assert tracked_lines(first) == before


def test_trackers_decide_no_artifact(recipe: Path, first: dict[str, Any]) -> None:
    plan = prerank("run", recipe, "--dry-run", "--json", "--set", "tracking.to=['tensorboard']")
    assert all(step["done"] for step in json.loads(plan.stdout)["steps"])


def test_changed_key_redoes_only_what_depends_on_it(recipe: Path, first: dict[str, Any]) -> None:
    plan = prerank("run", recipe, "--dry-run", "--json", "--set", "label.prior=0.2")
    todo = {s["stage"] for s in json.loads(plan.stdout)["steps"] if not s["done"]}
    assert todo == {"label", "train", "evaluate"}


def test_dry_run_prints_a_recipe_that_reads_back(
    recipe: Path, first: dict[str, Any], tmp_path: Path
) -> None:
    shown = json.loads(prerank("run", recipe, "--dry-run", "--json").stdout)
    copy = tmp_path / "copy.toml"
    copy.write_text(shown["recipe"])
    again = json.loads(prerank("run", copy, "--dry-run", "--json").stdout)
    assert again["steps"] == shown["steps"]


def test_human_output(recipe: Path, first: dict[str, Any]) -> None:
    done = prerank("run", recipe)
    assert "gpl" in done.stdout and "report.html" in done.stdout
    assert "done before" in done.stderr
    plan = prerank("run", recipe, "--dry-run")
    assert "[prepare.world]" in plan.stdout and "done before" in plan.stdout


def test_show_run_and_each_artifact(first: dict[str, Any]) -> None:
    folder = Path(first["folder"])
    listed = json.loads(prerank("show", folder, "--json").stdout)["artifacts"]
    assert {a["key"] for a in listed} == {s["key"] for s in first["steps"]}
    sids = json.loads(prerank("show", folder / "semantic_ids", "--json").stdout)
    assert sids["stage"] == "tokenize" and sids["quality.json"]
    assert "fingerprint" in prerank("show", folder / "anchors" / "llm").stdout


def test_show_audits_labels_where_the_truth_is_known(first: dict[str, Any]) -> None:
    folder = Path(first["folder"]) / "labels" / "gpl"
    audit = json.loads(prerank("show", folder, "--json").stdout)["audit"]
    assert 0 < audit["all"]["auc"] < 1 and len(audit["by_confidence"]) > 1
    assert "by popularity" in prerank("show", folder).stdout


def test_compare_plans_a_recipe_with_more_methods(recipe: Path, first: dict[str, Any]) -> None:
    plan = prerank("compare", recipe, "--methods", "gpl-joint", "--dry-run", "--json")
    todo = {s["key"] for s in json.loads(plan.stdout)["steps"] if not s["done"]}
    assert "rankers/gpl-joint/seed0" in todo and "rankers/gpl/seed0" not in todo


def test_compare_prints_runs_side_by_side(first: dict[str, Any]) -> None:
    found = prerank("compare", first["folder"])
    assert found.returncode == 0 and "gpl-shuffled" in found.stdout


def test_doctor() -> None:
    found = json.loads(prerank("doctor", "--json").stdout)
    assert found["cores"] >= 1
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert found["extras"].keys() == declared["optional-dependencies"].keys() - {"docs", "dev"}


def test_doctor_says_how_an_absent_extra_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    print_examination({"extras": {"gcs": None}})
    assert 'pip install "prerank[gcs]"' in capsys.readouterr().out


def test_options_of_a_recipe_are_no_options_of_finished_runs(first: dict[str, Any]) -> None:
    told = prerank("compare", first["folder"], "--methods", "all")
    assert told.returncode == 2 and "--methods" in told.stderr


def test_no_pickle_in_a_run(first: dict[str, Any]) -> None:
    suffixes = {p.suffix for p in Path(first["folder"]).rglob("*") if p.is_file()}
    assert suffixes <= {
        ".parquet",
        ".safetensors",
        ".json",
        ".jsonl",
        ".html",
        ".toml",
        ".jinja",
        "",
    }


def test_stage_alone_needs_its_parents(recipe: Path, tmp_path: Path) -> None:
    done = prerank("encode", recipe, "--set", f"out='{tmp_path}'")
    assert done.returncode == 3
    assert "artifact is not there" in done.stderr and "Traceback" not in done.stderr


def test_stage_of_another_recipe_is_stale(recipe: Path, first: dict[str, Any]) -> None:
    done = prerank("tokenize", recipe, "--set", "encode.embedding_dim=8")
    assert done.returncode == 3
    assert "other parents" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "absent.toml"], 2, "recipe is not there"),
        (["run", "RECIPE", "--set", "train.epoch=3"], 2, "unknown key `train.epoch`"),
        (["run", "RECIPE", "--set", "train.epochs=many"], 2, "train.epochs"),
        (["run", "RECIPE", "--set", "train"], 2, "stage.key=value"),
        (["run", "RECIPE", "--set", "prepare.source=games"], 2, "prepare.path"),
        (["run", "RECIPE", "--set", "methods.x.anchors=psychic"], 2, "unknown anchors"),
        (["run", "RECIPE", "--set", "methods.x.label.source=gpl"], 2, "needs `anchors`"),
        (["compare", "RECIPE", "--methods", "psychic"], 2, "unknown method"),
        (["compare", "RECIPE", "RECIPE"], 2, "one recipe at a time"),
        (["show", "nowhere"], 3, "no artifact here"),
        (["fly"], 2, "No such command"),
    ],
)
def test_bad_input_is_told_and_nothing_is_written(
    recipe: Path, arguments: list[str], code: int, message: str, tmp_path: Path
) -> None:
    filled = [str(recipe) if a == "RECIPE" else a for a in arguments]
    done = prerank(*filled, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_bad_toml_is_told(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("name = ")
    done = prerank("run", path)
    assert done.returncode == 2 and "not valid TOML" in done.stderr


def test_killed_run_goes_on_and_ends_alike(recipe: Path, first: dict[str, Any]) -> None:
    """Kill -9 at several moments; the artifacts end as those of the undisturbed run."""
    out = recipe.parent / "killed"
    command = [sys.executable, "-m", "prerank", "run", str(recipe), "--set", f"out='{out}'"]
    for seconds in (4.0, 7.0, 10.0):
        process = subprocess.Popen(
            command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=ONE_THREAD
        )
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = prerank("run", recipe, "--set", f"out='{out}'", "--json")
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert [s["fingerprint"] for s in again["steps"]] == [s["fingerprint"] for s in first["steps"]]
    values = [r["value"] for r in first["records"]]
    assert [r["value"] for r in again["records"]] == values


def test_two_runs_on_one_folder_are_refused(recipe: Path, first: dict[str, Any]) -> None:
    with locked(Path(first["folder"])):
        done = prerank("run", recipe)
        shown = prerank("show", first["folder"])
    assert done.returncode == 2 and "another run is working in this folder" in done.stderr
    assert f"process {os.getpid()} on {socket.gethostname()}, since 20" in done.stderr
    assert shown.returncode == 0  # who only reads needs no lock


def test_damaged_artifact_is_never_used(recipe: Path, first: dict[str, Any]) -> None:
    vectors = Path(first["folder"]) / "embeddings" / "vectors.safetensors"
    sound = vectors.read_bytes()
    vectors.write_bytes(sound[:-4] + b"\0\0\0\1")
    try:
        done = prerank("run", recipe, "--set", "label.prior=0.3")
        assert done.returncode == 3 and "damaged" in done.stderr
    finally:
        vectors.write_bytes(sound)


def test_damaged_report_is_not_shown(recipe: Path, first: dict[str, Any]) -> None:
    report = Path(first["folder"]) / "report" / "report.json"
    sound = report.read_text()
    report.write_text(sound.replace('"n": ', '"n":  ', 1))
    try:
        for options in ([], ["--json"]):
            done = prerank("run", recipe, *options)
            assert done.returncode == 3 and "damaged" in done.stderr and not done.stdout
    finally:
        report.write_text(sound)
