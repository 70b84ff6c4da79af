"""The ablations that ship: every one is there, plans, and shares what it does not change."""

from pathlib import Path

from prerank.plan import plan
from prerank.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[2]


def test_ablations_share_what_they_do_not_change() -> None:
    recipe = load_recipe(ROOT / "recipes" / "ablations.toml", ["prepare={source='world'}"])
    keys = {step.key for step in plan(recipe)}
    made = {stage: sorted(k for k in keys if k.startswith(stage) and "@" in k) for stage in STAGES}
    assert made["anchor_model"] == [
        "anchor_model@full-downsampling",
        "anchor_model@item-ids",
        "anchor_model@lsa-32",
        "anchor_model@minilm",
        "anchor_model@model-large",
        "anchor_model@model-small",
        "anchor_model@no-downsampling",
        "anchor_model@rq-vae",
    ]
    assert made["semantic_ids"] == [
        f"semantic_ids@{n}" for n in ("item-ids", "lsa-32", "minilm", "rq-vae")
    ]
    assert made["embeddings"] == ["embeddings@lsa-32", "embeddings@minilm"]
    # Fewer anchors are cut from those there are; only 100 are generated anew.
    assert {f"anchors/llm-{n}@anchors-{n}" for n in (1, 3, 10)} <= keys
    assert "anchors/llm@anchors-100" in keys and "anchors/llm@anchors-10" not in keys
    assert not [key for key in keys if key.startswith("labels/gpl@lambda")]


STAGES = ("embeddings", "semantic_ids", "anchor_model")


def test_every_ablation_is_of_gpl() -> None:
    recipe = load_recipe(ROOT / "recipes" / "ablations.toml")
    for name in recipe.variants:
        assert "gpl" in recipe.variant(name).methods, name
