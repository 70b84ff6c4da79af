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


def test_fewer_anchors_of_other_semantic_ids_are_generated_once() -> None:
    steps = added(few={"tokenize": {"codebook_size": 16}, "generate": {"n_anchors": 3}})
    assert list(steps["anchors/llm-3@few"].parents) == ["anchors/llm@few"]
    assert steps["anchors/llm@few"].config["n_anchors"] == Recipe().generate.n_anchors


def test_a_method_reads_the_first_of_the_anchors_there_are() -> None:
    few = {
        "gpl-few": {"anchors": "llm", "n_anchors": 3},
        "gpl-joined-few": {"anchors": "llm+history", "n_anchors": 3},
        "gpl-as-many": {"anchors": "llm", "n_anchors": Recipe().generate.n_anchors},
    }
    steps = {s.key: s for s in plan(parse_recipe({**BASE, "methods": {**BASE["methods"], **few}}))}
    assert steps["anchors/llm-3"].config == {"source": "llm", "first": 3}
    assert "anchors/llm-3" in steps["labels/gpl-few"].parents
    joined = steps["anchors/llm+history-3"]
    assert {"anchors/llm-3", "anchors/history-3"} <= set(joined.parents)
    assert "anchors/llm+history-3" in steps["labels/gpl-joined-few"].parents
    assert "labels/gpl-as-many" not in steps  # all there are: the labels of gpl


def test_the_fewer_of_a_variant_and_of_its_method_counts() -> None:
    methods = {"gpl": {"anchors": "llm", "n_anchors": 5}}
    for of_variant, left in ((3, 3), (9, 5)):
        variants = {"few": {"generate": {"n_anchors": of_variant}}}
        steps = plan(parse_recipe({"methods": methods, "variants": variants}))
        firsts = {step.config["first"] for step in steps if "first" in step.config}
        assert firsts == {5, left}


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
