"""The verb: end to end, over the world and over a known truth; no content, no gain."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from prerank.artifacts import TEST, VALIDATION, CodeLists, Features
from prerank.cli import app
from prerank.data.world import simulate as world_logs
from prerank.data.world_config import WorldConfig
from prerank.errors import ConfigError, DataError
from prerank.pipeline import Run
from prerank.plan import REVISIONS
from prerank.recipe import Recipe
from prerank.simulation.shops import known_pairs, open_market
from prerank.simulation.simulate import (
    _blocks,
    _common,
    _parents,
    load_result,
    simulate,
    with_arms,
)
from prerank.store import read_manifest

from .small import METHODS, SIMULATE, WORLD, small_recipe


def test_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    recipe = small_recipe(tmp_path, simulate={"arms": ["gpl"]})
    file.write_text(recipe.to_toml())
    found = CliRunner().invoke(app, ["simulate", str(file), "--json"], catch_exceptions=False)
    assert found.exit_code == 0
    result = json.loads(found.stdout)
    references = ["production", "oracle", "oracle-learnable", "oracle-interest"]
    assert result["arms"] == ["exposed-only", "gpl", *references]
    assert result["references"] == references
    assert len(result["before"]) == 2 and len(result["by_day"]["gpl"]) == 2
    ctr = {line["arm"]: line for line in result["lines"] if line["metric"] == "ctr"}
    assert ctr["exposed-only"]["lift"] is None
    assert ctr["oracle"]["lift"]["value"] > 0
    assert result["against"]["gpl"]["exposed-only"] == ctr["gpl"]["lift"]
    assert set(result["against"]) == {"exposed-only", "gpl"}
    page = (Path(result["folder"]) / "simulation.html").read_text()
    assert "https://" not in page.partition("<script>")[0]
    again = CliRunner().invoke(app, ["simulate", str(file)], catch_exceptions=False)
    assert "lift over exposed-only" in again.stdout


def test_a_stopped_simulation_does_not_wait_for_its_workers(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    recipe = small_recipe(tmp_path, simulate={"arms": ["gpl"], "n_replications": 400})
    file.write_text(recipe.model_copy(update={"workers": 2}).to_toml())
    command = [sys.executable, "-m", "prerank", "simulate", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    blocks = recipe.folder / ".work" / "simulate"
    deadline = time.monotonic() + 120
    try:
        while not list(blocks.glob("*/*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert list(blocks.glob("*/*")), "no worker ever finished anything"
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
    made = len(list(blocks.glob("*/*")))
    time.sleep(2)
    assert len(list(blocks.glob("*/*"))) == made  # nobody works on


def test_a_further_arm_reuses_the_others(tmp_path: Path) -> None:
    simulate(small_recipe(tmp_path, simulate={"arms": ["exposed-only"], "n_replications": 1}))
    blocks = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("r0000.json")}
    more = small_recipe(tmp_path, simulate={"arms": ["gpl-history"], "n_replications": 1})
    assert load_result(simulate(more))["arms"][:2] == ["exposed-only", "gpl-history"]
    assert {p: p.stat().st_mtime_ns for p in blocks} == blocks


def test_code_that_makes_other_labels_simulates_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {"arms": ["gpl-history"], "n_days": 1, "n_replications": 1}
    recipe = small_recipe(tmp_path, simulate=arms)
    first = read_manifest(simulate(recipe))
    blocks = recipe.folder / ".work" / "simulate"
    before = {path.name for path in blocks.iterdir()}
    monkeypatch.setitem(REVISIONS, "label", 7)  # type: ignore[arg-type]
    again = read_manifest(simulate(recipe))
    assert first is not None and again is not None and first.fingerprint != again.fingerprint
    new = {path.name.rpartition("-")[0] for path in blocks.iterdir() if path.name not in before}
    assert new == {"exposed-only", "gpl-history"}  # the references and the world stay


def test_what_changes_the_histories_trains_the_language_model_anew(tmp_path: Path) -> None:
    def mark(**simulate: object) -> str:
        return _common(small_recipe(tmp_path, simulate={**SIMULATE, **simulate}), {}).name

    assert mark() == mark(n_replications=1, arms=["gpl"], interval=0.8)
    days = {mark(n_days=n) for n in (1, 2, 3)}
    truths = {mark(truth={"n_history_days": n}) for n in (3, 4)}
    assert len(days) == 3 and len(truths) == 2


def test_other_weights_or_plug_ins_are_simulated_anew(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    weights = tmp_path / "model" / "config.json"
    part = tmp_path / "parts.py"
    part.write_text("def encode(texts): ...")
    encode = {
        "encoder": "fusion",
        "fusion": {"parts": [{"encoder": "lsa"}, {"encoder": "plugin", "plugin": "parts:encode"}]},
    }
    finetune = {"init": "checkpoint", "checkpoint": str(weights.parent)}
    recipe = small_recipe(tmp_path, encode=encode, finetune=finetune)
    marks = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        for model, text in (("a", "..."), ("b", "..."), ("b", "return texts")):
            weights.write_text(model)
            part.write_text(f"def encode(texts): {text}")
            marks.add((_blocks(recipe, "gpl", {}).name, _common(recipe, {}).name))
    assert len({arm for arm, _ in marks}) == len({common for _, common in marks}) == 3


def test_arms_need_not_be_those_that_reports_compare(tmp_path: Path) -> None:
    known = {"method": "gpl", "baselines": ["exposed-only", "gpl-history"]}
    recipe = small_recipe(tmp_path, evaluate=known, simulate={"arms": ["gpl"]})
    assert with_arms(recipe)[1][:2] == ("exposed-only", "gpl")


def test_an_adapted_teacher_knows_its_pairs(tmp_path: Path) -> None:
    arm = {"teacher": "adapted", "label": {"source": "teacher", "max_pairs": 50}}
    marks = {
        _blocks(
            small_recipe(tmp_path, methods={**METHODS, "taught": arm}, label={"max_pairs": n}),
            "taught",
            {},
        ).name
        for n in (60, 70)
    }
    assert len(marks) == 2  # the label stage of the arm itself is the same


@pytest.mark.parametrize("key", ["finetune.reuse", "tokenize.append_to"])
def test_what_another_run_made_is_refused(tmp_path: Path, key: str) -> None:
    recipe = small_recipe(tmp_path)
    stage, name = key.split(".")
    stage_config = getattr(recipe, stage).model_copy(update={name: str(tmp_path)})
    with pytest.raises(ConfigError, match=key):
        with_arms(recipe.model_copy(update={stage: stage_config}))


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"arms": ["nonsense"]}, "simulate.arms"), ({"baseline": "nonsense"}, "simulate.baseline")],
)
def test_an_unknown_arm_is_refused(tmp_path: Path, settings: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        with_arms(small_recipe(tmp_path, simulate=settings))


def test_arms_are_methods_of_the_recipe_or_known_by_name(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, simulate={"arms": ["gpl", "negative-sampling"]})
    chosen, arms = with_arms(recipe)
    assert arms[:5] == ("exposed-only", "gpl", "negative-sampling", "production", "oracle")
    assert arms[5:] == ("oracle-learnable", "oracle-interest")
    assert list(chosen.methods) == list(arms[:3])
    assert chosen.methods["negative-sampling"].label == {"source": "negatives"}
    assert with_arms(small_recipe(tmp_path))[1][:3] == tuple(METHODS)


@pytest.mark.parametrize("name", ["oracle", "oracle-learnable"])
def test_references_keep_their_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="taken"):
        with_arms(small_recipe(tmp_path, methods={**METHODS, name: {"anchors": "history"}}))


# ---- no content, no gain ---------------------------------------------------------------------


def test_without_content_gpl_does_not_gain(tmp_path: Path) -> None:
    """At full weight (no skill gate): own anchors are worth no more than another user's."""
    ungated = {"skill_weight": False}
    recipe = small_recipe(
        tmp_path,
        prepare={"world": {**WORLD, "content_strength": 0.0, "base_click_rate": 0.15}},
        simulate={"n_replications": 5, "baseline": "gpl-shuffled", "references": False},
        methods={
            "gpl": {"anchors": "llm", "label": ungated},
            "gpl-shuffled": {"anchors": "shuffled", "label": ungated},
        },
    )
    lines = load_result(simulate(recipe))["lines"]
    (lift,) = [
        line["lift"] for line in lines if (line["arm"], line["metric"]) == ("gpl", "expected_ctr")
    ]
    assert lift["low"] < 1.0 and abs(lift["value"]) < 4.0


# ---- a known truth ---------------------------------------------------------------------------


@pytest.fixture
def truth_recipe(tmp_path: Path) -> Recipe:
    """The world's ids and catalog, and a truth file: item i is clicked by users of its parity."""
    settings = WorldConfig.parse({**WORLD, "n_eval_requests": 20})
    data = world_logs(settings, 0)
    n_users, n_items = len(data.users), len(data.items)
    user, item = (x.ravel() for x in np.indices((n_users, n_items)))
    kept = (user * 7 + item) % 3 > 0
    user, item = user[kept], item[kept]
    click = ((user % 2 == item % 2) & (item % 4 < 2)).astype(int)
    frame = {"user": data.users.ids[user], "item": data.items.ids[item], "click": click}
    pl.DataFrame(frame).write_parquet(tmp_path / "truth.parquet")
    return small_recipe(
        tmp_path,
        prepare={"world": {**WORLD, "n_eval_requests": 20}},
        simulate={
            **SIMULATE,
            "n_replications": 1,
            "truth": {"file": str(tmp_path / "truth.parquet"), "n_users": 80, "n_history_days": 6},
        },
    )


def test_a_truth_from_a_file(truth_recipe: Recipe) -> None:
    result = load_result(simulate(truth_recipe))
    ctr = {x["arm"]: x["level"]["value"] for x in result["lines"] if x["metric"] == "ctr"}
    assert ctr["oracle"] > ctr["production"] > 0
    assert result["references"] == ["production", "oracle"]  # of data no model is known
    assert "real users" in result["notes"][0]


def test_another_truth_in_the_same_file_is_simulated_anew(truth_recipe: Recipe) -> None:
    before = _parents(Run(truth_recipe))
    file = truth_recipe.simulate.truth.file
    pl.read_parquet(file).with_columns(click=1 - pl.col("click")).write_parquet(file)
    assert _parents(Run(truth_recipe)) != before


@pytest.mark.parametrize("file", ["", "*.parquet", "absent.parquet"])
def test_a_truth_is_one_file(truth_recipe: Recipe, file: str) -> None:
    place = str(Path(truth_recipe.simulate.truth.file).parent / file)
    truth = truth_recipe.simulate.truth.model_copy(update={"file": place})
    settings = truth_recipe.simulate.model_copy(update={"truth": truth})
    with pytest.raises(ConfigError, match="one Parquet file"):
        simulate(truth_recipe.model_copy(update={"simulate": settings}))


def test_users_keep_all_kinds_of_features(truth_recipe: Recipe) -> None:
    data = world_logs(truth_recipe.prepare.world, 0)
    n = len(data.users)
    codes = np.arange(n, dtype=np.int32)
    lists = CodeLists(np.arange(n + 1), codes)
    given = np.column_stack([codes, -codes]).astype(np.float32)
    names = {"genres": tuple(data.users.ids)}
    features = Features(n, {}, names, {}, {"genres": lists}, {"given": given})
    market = open_market(truth_recipe, replace(data, user_features=features), 0)
    kept, ids = market.blank.user_features, market.blank.users.ids
    assert len(ids) == 80 < n
    assert [kept.categories["genres"][code] for code in kept.lists["genres"].codes] == ids.tolist()
    assert (kept.vectors["given"][:, 0] == kept.lists["genres"].codes).all()


def _with_users(recipe: Recipe, users: str) -> Recipe:
    truth = recipe.simulate.truth.model_copy(update={"users": users})
    return recipe.model_copy(
        update={"simulate": recipe.simulate.model_copy(update={"truth": truth})}
    )


def test_shops_of_one_period_hold_its_users_alone(truth_recipe: Recipe) -> None:
    data = world_logs(truth_recipe.prepare.world, 0)
    n = len(data.users)
    period = np.where(np.arange(n) < 50, VALIDATION, TEST).astype(np.int8)
    pools = replace(data.pools, split=period[data.pools.user])
    people = {}
    for users in ("validation", "test", "all"):
        recipe = _with_users(truth_recipe, users)
        for replication in range(2):
            market = open_market(recipe, replace(data, pools=pools), replication)
            people[users, replication] = set(market.blank.users.ids.tolist())
    chosen, tested = data.users.ids[:50].tolist(), data.users.ids[50:].tolist()
    met = set(data.users.ids[data.pools.user].tolist())
    assert people["validation", 0] == people["validation", 1] == met.intersection(chosen)
    assert len(people["all", 0]) == 80 > len(people["test", 0]) > 0
    assert people["test", 0] <= met.intersection(tested)


def test_a_shop_where_nobody_lives_is_refused(truth_recipe: Recipe) -> None:
    data = world_logs(truth_recipe.prepare.world, 0)
    nobody = replace(data, pools=data.pools.take(data.pools.split == TEST))
    with pytest.raises(ConfigError, match="no pool of validation"):
        open_market(_with_users(truth_recipe, "validation"), nobody, 0)


def test_only_listed_pairs_are_recalled(truth_recipe: Recipe) -> None:
    data = world_logs(truth_recipe.prepare.world, 0)
    market = open_market(truth_recipe, data, 0)
    user, item, click = known_pairs(data, truth_recipe)
    answer = {
        (data.users.ids[u], data.items.ids[i]): c
        for u, i, c in zip(user.tolist(), item.tolist(), click.tolist(), strict=True)
    }
    from prerank.data.world_cascade import blank_memory

    requests = market.requests(market.first_day, 10)
    traffic = market.serve(blank_memory(market.shop), requests, market.first_day, None)
    ids = market.blank.users.ids[traffic.user], market.blank.items.ids[traffic.item]
    truth = [answer[u, i] for u, i in zip(*ids, strict=True)]  # KeyError = a pair not listed
    assert traffic.truth.tolist() == truth
    assert len(np.unique(traffic.user.astype(np.int64) << 32 | traffic.item)) <= len(traffic)


def test_a_truth_needs_a_source(tmp_path: Path) -> None:
    data = world_logs(WorldConfig.parse({**WORLD, "n_eval_requests": 20}), 0)
    data.candidates.truth[:] = np.nan
    with pytest.raises(ConfigError, match="nobody knows"):
        known_pairs(data, small_recipe(tmp_path))


def test_a_truth_with_unknown_ids_is_refused(tmp_path: Path) -> None:
    data = world_logs(WorldConfig.parse({**WORLD, "n_eval_requests": 20}), 0)
    file = tmp_path / "truth.parquet"
    pl.DataFrame({"user": ["u000"], "item": ["nowhere"], "click": [1]}).write_parquet(file)
    recipe = small_recipe(tmp_path, simulate={"truth": {"file": str(file)}})
    with pytest.raises(DataError, match=r"item of the truth[\s\S]*got: \['nowhere'\]"):
        known_pairs(data, recipe)


@pytest.mark.parametrize(
    ("click", "message"),
    [
        ([1.0, 0.3], r"truth.parquet -> click, row 1 must be: 0 or 1.*got: 0.3"),
        ([1, 2], "got: 2"),
        ([1.0, float("nan")], "got: nan"),
        (["yes", "no"], "got: yes"),
        ([[1], [0]], "0 or 1"),
    ],
    ids=str,
)
def test_a_truth_of_something_else_than_clicks_is_refused(
    tmp_path: Path, click: list[Any], message: str
) -> None:
    data = world_logs(WorldConfig.parse({**WORLD, "n_eval_requests": 20}), 0)
    user, items = str(data.users.ids[0]), data.items.ids[:2].tolist()
    file = tmp_path / "truth.parquet"
    pl.DataFrame({"user": [user] * 2, "item": items, "click": click}).write_parquet(file)
    recipe = small_recipe(tmp_path, simulate={"truth": {"file": str(file)}})
    with pytest.raises(DataError) as caught:
        known_pairs(data, recipe)
    assert re.search(message, " ".join(str(caught.value).split()))


def test_a_truth_of_booleans_and_a_pair_listed_twice(tmp_path: Path) -> None:
    data = world_logs(WorldConfig.parse({**WORLD, "n_eval_requests": 20}), 0)
    user, items = str(data.users.ids[0]), data.items.ids[:2].tolist()
    file = tmp_path / "truth.parquet"
    frame = pl.DataFrame({"user": [user] * 2, "item": items, "click": [True, False]})
    frame.write_parquet(file)
    recipe = small_recipe(tmp_path, simulate={"truth": {"file": str(file)}})
    assert known_pairs(data, recipe)[2].tolist() == [1, 0]
    pl.concat([frame, frame[:1]]).write_parquet(file)
    with pytest.raises(DataError, match="listed twice"):
        known_pairs(data, recipe)
