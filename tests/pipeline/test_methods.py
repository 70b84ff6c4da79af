"""Every method of the comparison: what it is made from, and what is impossible."""

import json
from pathlib import Path
from typing import Any

import pytest

from prerank.artifacts import Report
from prerank.errors import ConfigError
from prerank.pipeline import Run, run_recipe
from prerank.plan import plan
from prerank.recipe import Recipe, all_methods, default_methods, load_recipe, parse_recipe

NAMES = [
    "exposed-only",
    "negative-sampling",
    "negative-sampling-popularity",
    "in-batch-logq",
    "ips",
    "snips",
    "dr",
    "ranker",
    "kd-exposed",
    "kd-all",
    "tl",
    "muda",
    "ukd",
    "sida",
    "damcar",
    "gpl",
    "gpl-history",
    "gpl-random",
    "gpl-popular",
    "gpl-shuffled",
    "gpl-debiased",
    "gpl-weighted",
    "gpl-joined",
    "gpl-joint",
    "gpl-joint+kd",
    "gpl+neg",
    "gpl+kd",
    "gpl-debiased+kd",
]
SMALL = {
    "prepare": {"world": {"n_users": 90, "n_items": 100, "requests_per_user": 2.0}},
    "encode": {"embedding_dim": 12},
    "tokenize": {"codebook_size": 8},
    "finetune": {"hidden_size": 16, "n_layers": 1, "n_heads": 2, "epochs": 1},
    "generate": {"n_anchors": 4},
    "train": {"epochs": 1},
    "teacher": {"model": "din", "hidden": [16]},
    "evaluate": {"n_resamples": 20},
    "seeds": [0],
}


def recipe(**changes: Any) -> Recipe:
    methods = {name: one.model_dump() for name, one in all_methods().items()}
    return parse_recipe({"methods": methods, **SMALL, **changes})


def changed(one: Recipe, other: Recipe) -> set[str]:
    before = {step.key: step.fingerprint for step in plan(one)}
    return {step.key for step in plan(other) if step.fingerprint != before[step.key]}


def test_names_and_order() -> None:
    assert list(all_methods()) == NAMES
    assert list(all_methods(truth=True)) == [*NAMES, "true-labels"]
    assert default_methods().items() <= all_methods().items()


def test_the_page_of_the_baselines_names_every_method() -> None:
    page = (Path(__file__).parents[2] / "docs" / "concepts" / "baselines.md").read_text()
    missing = [name for name in all_methods(truth=True) if f"`{name}`" not in page]
    assert not missing


def test_an_override_changes_a_default_method_or_joins_them(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('name = "mine"\n')
    values = ["methods.gpl.label.prior=exposed", 'methods.more={anchors="history"}']
    found = load_recipe(tmp_path / "mine.toml", values)
    assert list(found.methods) == [*default_methods(), "more"]
    assert found.methods["gpl"].anchors == "llm"
    assert found.label_of(found.methods["gpl"]).prior == "exposed"
    (tmp_path / "own.toml").write_text('[methods.gpl]\nanchors = "llm"\n')
    own = load_recipe(tmp_path / "own.toml", values)  # methods of a file stand alone
    assert list(own.methods) == ["gpl", "more"] and own.unscored() == ("exposed-only",)
    assert found.unscored() == ()


def test_items_of_one_semantic_id_that_are_not_alike_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("prerank.pipeline.log", said.append)
    tokens = {"codebook_size": 10, "n_levels": 1, "gate": {"max_bucket_share": 0.5}}
    for name, more in {"few": tokens, "enough": {"codebook_size": 64}}.items():
        said.clear()
        changed = {**SMALL, "tokenize": more, "name": name, "out": str(tmp_path)}
        run_recipe(parse_recipe(changed), ("prepare", "encode", "tokenize"))
        assert any("hardly alike" in line for line in said) == (name == "few")


def test_a_date_needs_no_quotes(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[prepare.split]\nvalidation_from = 2025-11-01\n")
    found = load_recipe(tmp_path / "mine.toml", ["prepare.split.test_from=2025-11-03T12:00:00Z"])
    split = found.prepare.split
    assert split.validation_from == "2025-11-01"
    assert split.test_from == "2025-11-03T12:00:00+00:00"


def test_a_changed_teacher_redoes_what_depends_on_it() -> None:
    other = recipe(teacher={"model": "din", "hidden": [8]})
    todo = {key.partition("/seed")[0] for key in changed(recipe(), other)}
    taught = {"kd-all", "muda", "ukd", "sida", "gpl-joint+kd", "gpl+kd", "gpl-debiased+kd"}
    ranked = {"ranker", "kd-exposed", "tl", *taught}
    assert todo == {
        "teachers/ranker",
        "teachers/adapted",
        "report",
        *(f"labels/{name}" for name in taught),
        *(f"rankers/{name}" for name in ranked),
    }


def test_the_teachers_pairs_are_part_of_the_adapted_one_only() -> None:
    todo = changed(recipe(), recipe(label={"max_pairs": 500}))
    assert "teachers/adapted" in todo and "teachers/ranker" not in todo
    assert "rankers/kd-exposed/seed0" not in todo


def test_a_variant_of_the_pre_ranker_keeps_the_teacher() -> None:
    one = recipe(variants={"light": {"methods": ["kd-all"], "train": {"pseudo_weight": 0.5}}})
    keys = {step.key for step in plan(one)}
    assert "rankers/kd-all@light/seed0" in keys
    assert {key for key in keys if key.startswith("teachers/")} == {
        "teachers/ranker",
        "teachers/adapted",
    }


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({}, "needs `anchors`"),
        ({"label": {"source": "teacher"}}, "needs `teacher`"),
        ({"label": {"source": "none"}, "train": {"objective": "distillation"}}, "needs `teacher`"),
        ({"anchors": "llm", "label": {"mix": "teacher"}}, "needs `teacher`"),
        ({"anchors": "llm", "teacher": "ranker"}, "nothing reads its scores"),
        ({"label": {"source": "none"}, "train": {"objective": "dr"}}, "`unlabeled`, not none"),
        ({"anchors": "llm", "train": {"objective": "ips"}}, "`unlabeled`, not gpl"),
        ({"label": {"source": "unlabeled"}}, "`none` or a source of labels"),
        ({"teacher": "psychic"}, "teacher"),
        ({"label": {"source": "none"}, "n_anchors": 3}, "has no `anchors`"),
        ({"anchors": "llm", "teach": {"hidden": [8]}}, "has none"),
        ({"anchors": "llm", "teacher": "ranker", "teach": {"hiden": [8]}}, "hiden"),
    ],
)
def test_impossible_methods_are_told(method: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_recipe({"methods": {"x": method}})


def test_the_recipe_reads_back() -> None:
    import tomllib

    one = recipe()
    assert parse_recipe(tomllib.loads(one.to_toml())) == one


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    one = recipe(out=str(tmp_path_factory.mktemp("methods")))
    run_recipe(one)
    return one


def test_every_method_runs_and_is_reported(finished: Recipe) -> None:
    report = Run(finished).load("report", Report)
    found = {r.method for r in report.records if r.metric == "gauc" and r.value is not None}
    assert set(NAMES) <= found
    assert {"match llm", "match llm, probability-weighted 0.1"} <= found


def test_every_method_but_the_ranker_is_the_same_model_to_serve(finished: Recipe) -> None:
    """Same graph, same weights' names and shapes, so the same cost; heads and teachers stay out."""
    from safetensors import safe_open

    def served(name: str) -> dict[str, Any]:
        folder = Path(finished.folder) / "rankers" / name / "seed0"
        about = json.loads((folder / "pre_ranker.json").read_text())
        with safe_open(folder / "weights.safetensors", "numpy") as weights:
            shapes = {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118
        files = sorted(path.name for path in folder.iterdir())
        return {"model": about["config"]["model"], "shapes": shapes, "files": files}

    plain = served("exposed-only")
    for name in NAMES:
        assert (served(name) == plain) == (name != "ranker"), name


def test_the_ranker_is_not_exported(finished: Recipe) -> None:
    from prerank.serving.export import load_trained

    assert load_trained(finished.folder, "kd-all").method == "kd-all"
    with pytest.raises(ConfigError, match="not exported"):
        load_trained(finished.folder, "ranker")
