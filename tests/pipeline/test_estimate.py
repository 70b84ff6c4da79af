"""What a recipe will cost: counts, the arithmetic by hand, and sizes that files really have."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

import tiny
from prerank import estimate, store
from prerank.anchors.config import FinetuneConfig, GenerateConfig
from prerank.artifacts import InterestAnchors
from prerank.cli import app
from prerank.data.config import LogsConfig
from prerank.errors import ConfigError, DataError
from prerank.pipeline import Run, run_recipe
from prerank.ranking.config import TrainConfig
from prerank.recipe import Recipe, load_recipe, parse_recipe

PAPER = """
[prepare]
source = "games"
[finetune]
init = "checkpoint"
checkpoint = "not-here"
lora = true
[generate]
beam_width = 20
n_anchors = 20
[methods.gpl]
anchors = "llm"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return parse_recipe({"out": str(tmp_path), "prepare": {"world": {"n_users": 100}}})


def test_operations_of_a_search_by_hand() -> None:
    model = estimate.Decoder(hidden=2, inner=3, layers=2, key_size=1)
    assert (model.keys, model.layer) == (2 * 2 * 1, 2 * 4 + 4 + 3 * 2 * 3)
    config = GenerateConfig(beam_width=5, n_anchors=1, max_history=50)
    # 1 + 4 * 2 tokens read by one layer and its keys; the last layer once; 5 beams by both layers.
    by_hand = 2 * (9 * (30 + 4) + 30 + 5 * 2 * 30)
    assert estimate.user_flops(config, model, n_levels=2, history=4.0) == by_hand


def test_operations_of_training_by_hand() -> None:
    counts = estimate.Counts(10, 5, 100, 0, 0, 3.0, "")
    config = FinetuneConfig(epochs=2, hidden_size=8, n_heads=1, intermediate_size=8, n_layers=1)
    layer = 4 * 64 + 3 * 64
    assert estimate.finetune_flops(config, 3, counts) == 6 * (10 * 3 * 3 * 2) * layer
    again = config.model_copy(update={"recompute": True})
    assert estimate.finetune_flops(again, 3, counts) == pytest.approx(8 * 180 * layer)
    auto = config.model_copy(update={"epochs": 0})
    assert estimate.finetune_flops(auto, 3, counts) == 6 * (10 * 3 * 3 * 30) * layer


def test_a_checkpoint_tells_its_shape(tmp_path: Path) -> None:
    about = {
        "hidden_size": 64,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(about))
    here = FinetuneConfig(init="checkpoint", checkpoint=str(tmp_path))
    assert estimate.decoder_of(here) == estimate.Decoder(64, 32, 3, 16)
    absent = here.model_copy(update={"checkpoint": "not-here"})
    assert estimate.decoder_of(absent) == estimate.QWEN_05B


def test_counts_of_a_prepared_dataset_are_exact(tmp_path: Path) -> None:
    store.save(tmp_path, tiny.dataset())
    about = json.loads((tmp_path / "dataset.json").read_text())
    about["cuts"]["anchors"] = 15  # interactions lie at 10, 5 and 30
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    found = estimate.counts_of_dataset(tmp_path)
    assert (found.users, found.items, found.exposures, found.candidates) == (3, 4, 5, 6)
    assert (found.interactions, found.history) == (3, 2 / 3)


def test_counts_of_logs_under_the_users_own_names(tmp_path: Path) -> None:
    pl.DataFrame({"item": ["a", "b"]}).write_parquet(tmp_path / "items.parquet")
    shown = {"uid": [1, 1, 2, 3], "item": list("abab"), "click": ["1", "0", "1", None]}
    pl.DataFrame(shown).write_csv(tmp_path / "exposures.csv")
    config = LogsConfig.parse({"exposures": {"columns": {"user": "uid"}}})
    found = estimate.counts_of_logs(tmp_path, config, anchored=0.5)
    assert (found.users, found.items, found.exposures, found.candidates) == (3, 2, 4, 0)
    assert (found.interactions, found.history) == (2, pytest.approx(0.5 * 2 / 3))


def test_logs_are_counted_in_every_form_that_prepare_reads(tmp_path: Path) -> None:
    pl.DataFrame({"item": ["a", "b"]}).write_parquet(tmp_path / "items.parquet")
    shown = {"user": [1, 2, 3], "item": list("aba"), "click": ["true", "False", None]}
    pl.DataFrame(shown).write_csv(tmp_path / "shown.tsv", separator="\t")
    (tmp_path / "exposures").mkdir()
    for day, click in {"1": [True, True, False], "2": [True, False, None]}.items():
        frame = pl.DataFrame({**shown, "click": click})
        frame.write_parquet(tmp_path / "exposures" / f"{day}.parquet")
    one = LogsConfig.parse({"exposures": {"file": "shown.tsv"}})
    for config, rows, clicks in ((one, 3, 1), (LogsConfig(), 6, 3)):
        found = estimate.counts_of_logs(tmp_path, config, anchored=1.0)
        assert (found.users, found.exposures, found.interactions) == (3, rows, clicks)


def test_users_of_every_table_are_counted(tmp_path: Path) -> None:
    pl.DataFrame({"item": ["a", "b"]}).write_parquet(tmp_path / "items.parquet")
    for name, users in {
        "exposures": [1, 2],
        "candidates": [2, 3],
        "interactions": [4, 4],
        "users": [1, 5],
    }.items():
        pl.DataFrame({"user": users, "item": ["a", "b"]}).write_parquet(
            tmp_path / f"{name}.parquet"
        )
    found = estimate.counts_of_logs(tmp_path, LogsConfig(), anchored=1.0)
    assert (found.users, found.history) == (5, pytest.approx(2 / 5))


def test_logs_are_large_where_prepare_takes_them_for_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interactions count, and so does whether there is a time."""
    pl.DataFrame({"item": ["a", "b"]}).write_parquet(tmp_path / "items.parquet")
    for name, n in {"exposures": 60, "interactions": 50}.items():
        columns = {"user": [1] * n, "item": ["a"] * n, "time": [10**9] * n}
        pl.DataFrame(columns).write_parquet(tmp_path / f"{name}.parquet")
    monkeypatch.setattr("prerank.data.parted.is_large.__defaults__", (100,))
    prepare = {"source": "logs", "path": str(tmp_path)}
    recipe = parse_recipe({"out": str(tmp_path / "runs"), "prepare": prepare})
    rates = json.loads(estimate.RATES.read_text())["rates"]

    def rate() -> float:
        found = estimate.estimate(recipe)["steps"][0]["rate"]
        assert isinstance(found, float)
        return found

    assert rate() == rates["prepare_parts_rows_per_second"]
    for name in ("exposures", "interactions"):
        pl.read_parquet(tmp_path / f"{name}.parquet").drop("time").write_parquet(
            tmp_path / f"{name}.parquet"
        )
    assert rate() == rates["prepare_rows_per_second"]


def test_a_plug_in_is_reckoned_as_a_two_tower(tmp_path: Path) -> None:
    train = {"model": "plugin", "plugin": "some.where:build"}
    counts = estimate.Counts(100, 100, 1000, 0, 100, 3.0, "")
    recipe = parse_recipe({"out": str(tmp_path), "prepare": {"world": {"n_users": 100}}})
    rates = json.loads(estimate.RATES.read_text())["rates"]
    reckoner = estimate._Reckoner(Run(recipe), counts, estimate.Machine(cores=1), rates)
    costs = [
        reckoner._training(TrainConfig.parse(config), has_pairs=True)
        for config in (train, {"model": "two-tower"})
    ]
    assert costs[0] == costs[1]


def test_rows_that_cannot_be_counted_must_be_given(tmp_path: Path) -> None:
    recipe = parse_recipe({"out": str(tmp_path), "prepare": {"source": "games"}})
    with pytest.raises(ConfigError, match="--users, --items, --exposures"):
        estimate.estimate(recipe)


def test_hours_of_a_day_of_traffic_by_hand(tmp_path: Path) -> None:
    (tmp_path / "day.toml").write_text(PAPER)
    recipe = load_recipe(tmp_path / "day.toml", [f"out={tmp_path}"])
    counts = {"users": 300_000_000, "items": 10_000_000, "exposures": 10**9, "history": 50.0}
    machine = estimate.Machine(cores=8, gpus=96, gpu_tflops=100.0, gpu_share=0.2)
    found = estimate.estimate(recipe, counts, machine)
    step = next(one for one in found["steps"] if one["key"] == "anchors/llm")
    layer = 2 * 896**2 + 2 * 896 * 128 + 3 * 896 * 4864
    user = 2 * (151 * (23 * layer + 2 * 896 * 128) + layer + 40 * 24 * layer)
    assert step["rate"] == pytest.approx(96 * 100e12 * 0.2 / user)
    assert step["seconds"] == pytest.approx(300e6 * user / (96 * 20e12))
    anchors = 300_000_000 * (20 * (4 * 3 + 12) + 8)
    assert step["bytes"] == anchors + 4 * 96 * 10_000_000  # a point an item at most
    on_gpus = sum(one["seconds"] for one in found["steps"] if one["on"] == "GPU")
    assert found["total"]["gpu_hours"] == pytest.approx(96 * on_gpus / 3600)


def test_anchors_take_the_bytes_foretold(tmp_path: Path, recipe: Recipe) -> None:
    generate = GenerateConfig(n_anchors=5, beam_width=5)
    recipe = recipe.model_copy(update={"generate": generate})
    found = estimate.estimate(recipe)
    step = next(one for one in found["steps"] if one["key"] == "anchors/llm")
    n, dim = 100 * 5, recipe.encode.embedding_dim
    zeros = np.zeros(n, np.float32)
    points = np.zeros((min(n, found["counts"]["items"]), dim), np.float32)
    points[:, 0] = 1
    point = np.arange(n, dtype=np.int32) % np.int32(len(points))
    codes = np.zeros((n, recipe.tokenize.n_levels), np.int32)
    offsets = np.arange(0, n + 1, 5, dtype=np.int64)
    store.save(tmp_path, InterestAnchors(offsets, codes, point, points, zeros, zeros, "llm"))
    size = (tmp_path / "anchors.safetensors").stat().st_size
    assert size == pytest.approx(step["bytes"], abs=1000)  # a header, and one more offset


def test_every_step_of_the_plan_is_reckoned_and_a_done_one_is_free(recipe: Recipe) -> None:
    from prerank.pipeline import Run, execute

    before = estimate.estimate(recipe)
    assert all(one["seconds"] > 0 for one in before["steps"])
    run = Run(recipe)
    assert [one["key"] for one in before["steps"]] == list(run.steps)
    execute(run, run.steps["dataset"])
    after = estimate.estimate(recipe)
    assert (after["steps"][0]["done"], after["steps"][0]["seconds"]) == (True, 0.0)
    assert after["counts"]["source"] == "the prepared dataset, exact"
    assert after["counts"]["exposures"] == len(run.dataset.exposures)


def test_of_other_sizes_nothing_is_done(recipe: Recipe) -> None:
    run_recipe(recipe, ("prepare", "encode"))
    assert sum(step["done"] for step in estimate.estimate(recipe)["steps"]) == 2
    more = estimate.estimate(recipe, {"users": 10**6, "items": 10**5, "exposures": 10**8})
    assert not any(step["done"] for step in more["steps"])
    assert all(step["seconds"] > 0 for step in more["steps"])


def test_more_cores_and_gpus_are_never_slower(recipe: Recipe) -> None:
    def hours(cores: int, gpus: int) -> float:
        total: float = estimate.estimate(recipe, machine=estimate.Machine(cores, gpus))["total"][
            "hours"
        ]
        return total

    assert hours(4, 0) < hours(1, 0)
    assert hours(1, 1) < hours(1, 0)


def test_the_command_prints_a_table_and_json(tmp_path: Path) -> None:
    (tmp_path / "day.toml").write_text(PAPER)
    options = ["--users", "1000", "--items", "100", "--exposures", "9000", "--gpus", "2"]
    command = ["estimate", str(tmp_path / "day.toml"), *options, "--set", f"out={tmp_path}"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "anchors/llm" in shown.output and "not measured" in shown.output
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert found["counts"]["users"] == 1000 and found["machine"]["gpus"] == 2
    assert not list(tmp_path.glob("run*"))


def test_a_large_log_costs_what_parts_cost(tmp_path: Path) -> None:
    logs = {"source": "logs", "path": str(tmp_path / "far")}
    recipe = parse_recipe({"prepare": logs, "methods": {"gpl-history": {"anchors": "history"}}})
    given = {"items": 10**5, "history": 5.0}
    rates = json.loads(estimate.RATES.read_text())["rates"]
    machine = estimate.Machine(cores=64)

    def steps_of(rows: int) -> dict[str, dict[str, float]]:
        size = {"exposures": rows, "users": rows // 100}
        found = estimate.estimate(recipe, given | size, machine)
        return {step["stage"]: step for step in found["steps"]}

    large, small = steps_of(10**8), steps_of(10**5)
    assert large["prepare"]["rate"] == rates["prepare_parts_rows_per_second"]
    assert small["prepare"]["rate"] == rates["prepare_rows_per_second"]
    assert large["label"]["rate"] < rates["label_parts_pairs_per_second"] < small["label"]["rate"]
    assert large["label"]["on"] == "core"


def test_logs_that_cannot_be_counted_are_told(tmp_path: Path) -> None:
    pl.DataFrame({"item": ["a", "b"]}).write_parquet(tmp_path / "items.parquet")
    pl.DataFrame({"uid": [1], "item": ["a"]}).write_parquet(tmp_path / "exposures.parquet")
    prepare = {"source": "logs", "path": str(tmp_path)}
    recipe = parse_recipe({"out": str(tmp_path / "runs"), "prepare": prepare})
    with pytest.raises(DataError, match="cannot be counted") as caught:
        estimate.estimate(recipe)
    assert caught.value.where == str(tmp_path) and "user" in str(caught.value)
    (tmp_path / "exposures.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(DataError, match="cannot be counted"):
        estimate.estimate(recipe)


def test_logs_at_a_uri_are_not_counted(tmp_path: Path) -> None:
    shown = pl.DataFrame({"user": [1], "item": ["a"], "click": [1]})
    shown.write_parquet(tmp_path / "exposures.parquet")
    prepare = {"source": "logs", "path": f"file://{tmp_path}"}
    recipe = parse_recipe({"out": str(tmp_path / "runs"), "prepare": prepare})
    with pytest.raises(ConfigError, match="--users, --items, --exposures"):
        estimate.estimate(recipe)
