"""Which methods a comparison holds, and under which conditions."""

from typing import Any

import pytest

from prerank.comparison import resolve
from prerank.errors import ConfigError
from prerank.plan import plan
from prerank.recipe import Recipe, all_methods, parse_recipe

CONTROLS = {"gpl-history", "gpl-random", "gpl-popular", "gpl-shuffled"}


def recipe(**values: Any) -> Recipe:
    base = {"methods": {"gpl": {"anchors": "llm", "train": {"pseudo_weight": 2.0}}}}
    return parse_recipe({**base, **values})


def test_baseline_and_controls_always_stand_beside_the_method() -> None:
    assert set(resolve(recipe()).methods) >= {"exposed-only", "gpl", *CONTROLS}
    assert "negative-sampling" not in resolve(recipe()).methods


def test_asked_methods_are_added() -> None:
    found = resolve(recipe(), "negative-sampling, gpl-joint")
    assert {"negative-sampling", "gpl-joint", "gpl"} <= set(found.methods)


def test_all_are_those_prerank_knows_and_the_recipes_own() -> None:
    methods = {"gpl": {"anchors": "history"}, "mine": {"anchors": "popular"}}
    found = resolve(recipe(methods=methods), "all", truth=True)
    assert set(found.methods) >= {*all_methods(truth=True), "mine"}
    # What the recipe says of a method stays.
    assert found.methods["gpl"].anchors == "history"
    assert "true-labels" not in resolve(recipe(), "all").methods


def test_every_method_is_compared_with_the_baseline_and_with_gpl() -> None:
    assert resolve(recipe()).evaluate.baselines == ("exposed-only", "gpl")


def test_seeds() -> None:
    assert resolve(recipe(), seeds=3).seeds == (0, 1, 2)
    assert resolve(recipe(seeds=[7])).seeds == (7,)


def test_enough_draws_for_holm() -> None:
    few = resolve(recipe(evaluate={"n_resamples": 50}))
    assert few.evaluate.n_resamples >= 80 * len(few.methods)
    assert resolve(recipe(evaluate={"n_resamples": 9000})).evaluate.n_resamples == 9000


def test_comparing_keeps_the_fingerprints_of_what_the_recipe_makes() -> None:
    own = {s.key: s.fingerprint for s in plan(recipe()) if s.key != "report"}
    assert own.items() <= {s.key: s.fingerprint for s in plan(resolve(recipe(), "all"))}.items()


def test_unknown_method_is_told() -> None:
    with pytest.raises(ConfigError, match="unknown method"):
        resolve(recipe(), "gpl,psychic")


def test_added_methods_that_contradict_the_recipe_are_told() -> None:
    own = {"exposed-only": {"teacher": "ranker", "label": {"source": "none"}}}
    odd = recipe(
        methods={**own, "gpl": {"anchors": "llm", "teacher": "ranker"}},
        train={"objective": "distillation"},
    )
    with pytest.raises(ConfigError, match="gpl-history") as caught:
        resolve(odd, "gpl")
    assert caught.value.where.startswith("compare")
