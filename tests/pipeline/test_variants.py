"""Ablations: a variant changes keys of any stage and shares every step it does not change."""

from typing import Any

import pytest

from prerank.errors import ConfigError
from prerank.plan import Step, plan
from prerank.recipe import Recipe, parse_recipe

BASE: dict[str, Any] = {
    "seeds": [0, 1],
    "methods": {
        "exposed-only": {"label": {"source": "none"}},
        "gpl": {"anchors": "llm", "train": {"pseudo_weight": 2.0}},
        "gpl-joined": {"anchors": "llm+history"},
    },
}


def recipe(**variants: Any) -> Recipe:
    return parse_recipe({**BASE, "variants": variants})


def added(**variants: Any) -> dict[str, Step]:
    """Return the steps that variants add to the plan, the report left out."""
    base = {step.key for step in plan(recipe())}
    return {s.key: s for s in plan(recipe(**variants)) if s.key not in base}


def test_training_key_adds_pre_rankers_only() -> None:
    steps = added(light={"train": {"pseudo_weight": 0.5}})
    assert list(steps) == ["rankers/gpl@light/seed0", "rankers/gpl@light/seed1"]
    # The variant wins over what the method changes itself.
    assert steps["rankers/gpl@light/seed0"].config["pseudo_weight"] == 0.5


def test_label_key_shares_the_anchors() -> None:
    steps = added(hard={"label": {"map": "linear"}})
    assert list(steps) == ["labels/gpl@hard", "rankers/gpl@hard/seed0", "rankers/gpl@hard/seed1"]
    assert "anchors/llm" in steps["labels/gpl@hard"].parents
    assert "labels/gpl@hard" in steps["rankers/gpl@hard/seed0"].parents


def test_early_key_adds_all_that_follows() -> None:
    steps = added(coarse={"tokenize": {"codebook_size": 16}})
    assert list(steps) == [
        "semantic_ids@coarse",
        "anchor_model@coarse",
        "anchors/llm@coarse",
        "labels/gpl@coarse",
        "rankers/gpl@coarse/seed0",
        "rankers/gpl@coarse/seed1",
    ]
    assert "embeddings" in steps["semantic_ids@coarse"].parents


def test_variant_equal_to_the_recipe_shares_all_but_the_pre_rankers() -> None:
    steps = added(same={"tokenize": {"codebook_size": Recipe().tokenize.codebook_size}})
    assert list(steps) == ["rankers/gpl@same/seed0", "rankers/gpl@same/seed1"]


def test_two_variants_share_an_equal_early_step() -> None:
    coarse = {"codebook_size": 16}
    steps = added(
        one={"tokenize": coarse}, two={"tokenize": coarse, "train": {"pseudo_weight": 0.1}}
    )
    assert "semantic_ids@one" in steps and "semantic_ids@two" not in steps
    assert "anchors/llm@two" not in steps


def test_fewer_anchors_are_the_first_of_those_there_are() -> None:
    steps = added(few={"methods": ["gpl-joined"], "generate": {"n_anchors": 3}})
    assert "anchor_model@few" not in steps
    few = steps["anchors/llm-3@few"]
    assert few.config == {"source": "llm", "first": 3} and list(few.parents) == ["anchors/llm"]
    joined = steps["anchors/llm+history-3@few"]
    assert {"anchors/llm-3@few", "anchors/history-3@few"} <= set(joined.parents)


def test_fewer_anchors_of_other_semantic_ids_are_decoded_alone() -> None:
    steps = added(few={"tokenize": {"codebook_size": 16}, "generate": {"n_anchors": 3}})
    assert steps["anchors/llm@few"].config["n_anchors"] == 3


def with_methods(variants: dict[str, Any] | None = None, **methods: Any) -> dict[str, Step]:
    values = {"methods": methods, "generate": {"n_anchors": 9, "beam_width": 20}}
    return {s.key: s for s in plan(parse_recipe({**values, "variants": variants or {}}))}


def test_methods_read_the_first_of_the_anchors_decoded_once() -> None:
    steps = with_methods(
        **{
            "gpl": {"anchors": "llm"},
            "gpl-many": {"anchors": "llm", "n_anchors": 15},
            "gpl-few": {"anchors": "llm", "n_anchors": 3},
            "gpl-joined": {"anchors": "llm+history", "n_anchors": 3},
            "gpl-history": {"anchors": "history"},
            "gpl-shuffled": {"anchors": "shuffled"},
        }
    )
    assert steps["anchors/llm"].config["n_anchors"] == 15
    assert steps["anchors/llm-9"].config == {"source": "llm", "first": 9}
    read = {"gpl": "llm-9", "gpl-many": "llm", "gpl-few": "llm-3", "gpl-joined": "llm+history"}
    for method, anchors in read.items():
        assert f"anchors/{anchors}" in steps[f"labels/{method}"].parents
    assert {"anchors/llm-3", "anchors/history-3"} <= set(steps["anchors/llm+history"].parents)
    # Controls need no language model to be made with fewer.
    assert steps["anchors/history"].config["n_anchors"] == 9
    assert steps["anchors/history-3"].config["n_anchors"] == 3
    assert "anchors/llm-9" in steps["anchors/shuffled"].parents


def test_a_shuffled_control_alone_decides_what_is_decoded() -> None:
    steps = with_methods(**{"gpl-shuffled": {"anchors": "shuffled", "n_anchors": 15}})
    assert steps["anchors/llm"].config["n_anchors"] == 15


def test_the_number_of_a_variant_wins_over_that_of_its_method() -> None:
    variants = {
        "few": {"generate": {"n_anchors": 3}},
        "light": {"train": {"epochs": 1}},
        "wide": {"generate": {"beam_width": 30}},
    }
    steps = with_methods(variants, gpl={"anchors": "llm", "n_anchors": 15})
    assert "anchors/llm-3@few" in steps["labels/gpl@few"].parents
    assert "labels/gpl@light" not in steps
    assert steps["anchors/llm@wide"].config["n_anchors"] == 15


def test_more_anchors_than_beams_are_refused() -> None:
    for anchors in ("llm", "llm+history", "shuffled"):
        with pytest.raises(ConfigError, match="beam_width") as told:
            with_methods(first={"anchors": "llm"}, gpl={"anchors": anchors, "n_anchors": 21})
        assert told.value.where == "methods.gpl.n_anchors" and told.value.got == "21"
    with pytest.raises(ConfigError, match="beam_width"):
        parse_recipe({"generate": {"n_anchors": 21, "beam_width": 20}})
    with pytest.raises(ConfigError, match=r"'gpl' .* beams") as told:
        narrow = {"narrow": {"generate": {"beam_width": 10}}}
        with_methods(narrow, gpl={"anchors": "llm", "n_anchors": 15})
    assert told.value.where == "variants.narrow.generate"
    assert with_methods(gpl={"anchors": "history", "n_anchors": 21})  # needs no beams


def test_more_anchors_are_generated() -> None:
    steps = added(many={"generate": {"n_anchors": 100, "beam_width": 100}})
    assert steps["anchors/llm@many"].config["n_anchors"] == 100
    assert "anchor_model@many" not in steps


def test_base_steps_are_those_of_the_recipe_without_variants() -> None:
    marks = {step.key: step.fingerprint for step in plan(recipe())}
    varied = {step.key: step.fingerprint for step in plan(recipe(light={"train": {"epochs": 1}}))}
    del marks["report"]  # it is made from more pre-rankers now
    assert marks.items() <= varied.items()


def test_arms_name_methods_then_variants() -> None:
    both = recipe(a={"methods": ["exposed-only", "gpl"], "train": {"use_content": False}}, b={})
    assert both.arms() == {
        **{name: name for name in BASE["methods"]},
        "exposed-only@a": "exposed-only",
        "gpl@a": "gpl",
        "gpl@b": "gpl",
    }


def test_recipe_with_variants_reads_back() -> None:
    import tomllib

    written = recipe(a={"tokenize": {"codebook_size": 16}})
    assert parse_recipe(tomllib.loads(written.to_toml())) == written


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"methods": ["gpl", "magic"]}, "variants.v.methods"),
        ({"train": {"epoch": 3}}, "variants.v.train -> epoch"),
        ({"prepare": {"source": "games"}}, "prepare"),
        ({"evaluate": {"ks": [1]}}, "evaluate"),
    ],
)
def test_bad_variant_is_told(variant: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(v=variant)


def test_bad_variant_name_is_told() -> None:
    with pytest.raises(ConfigError, match="a/b"):
        parse_recipe({**BASE, "variants": {"a/b": {}}})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"label": {"source": "teacher"}}, "needs `teacher`"),
        ({"label": {"mix": "teacher"}}, "needs `teacher`"),
        ({"train": {"objective": "distillation"}}, "needs `teacher`"),
        ({"train": {"objective": "ips"}}, "needs label source `unlabeled`"),
    ],
)
def test_a_variant_that_contradicts_itself_is_refused(
    changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        recipe(odd=changes)
    assert "variants.odd" in str(caught.value) and "'gpl'" in str(caught.value)
