"""New items become reachable anchors without retraining: append, then generate as before."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from prerank import artifacts as a
from prerank.anchors.config import GenerateConfig
from prerank.anchors.generate import generate
from prerank.anchors.model import SidLM, save
from prerank.anchors.tokens import SidTokens
from prerank.embeddings.vectors import unit_rows
from prerank.errors import ArtifactError, ConfigError
from prerank.pipeline import run_recipe
from prerank.recipe import parse_recipe
from prerank.semantic_ids.config import TokenizeConfig
from prerank.semantic_ids.tokenize import tokenize
from prerank.show import describe_folder, drift_of_folders
from prerank.store import load
from prerank.vocabulary import Vocabulary
from tiny import dataset

N_OLD, N_ALL = 15, 24


def names(n: int) -> Vocabulary:
    return Vocabulary.of(f"i{i:02d}" for i in range(n))


def grown() -> a.Dataset:
    """Return the hand-sized data set with a catalogue of N_ALL items."""
    data, title = dataset(), np.array([f"item {i}" for i in range(N_ALL)], object)
    return replace(data, items=names(N_ALL), catalog=a.Catalog(title, title, a.Features(N_ALL)))


def test_an_anchor_model_writes_the_ids_of_items_it_never_saw(tmp_path: Path) -> None:
    vectors = unit_rows(np.random.default_rng(0).standard_normal((N_ALL, 6)).astype(np.float32))
    config = TokenizeConfig(codebook_size=4)
    old = tokenize(a.ItemEmbeddings(vectors[:N_OLD]), config, 0, items=names(N_OLD))
    space = a.ItemEmbeddings(vectors)
    new = tokenize(space, config, 0, items=names(N_ALL), published=old)
    known = {tuple(code) for code in old.codes.tolist()}
    fresh = {tuple(code) for code in new.codes.tolist()} - known
    assert fresh

    torch.manual_seed(0)
    tokens = SidTokens(0, tuple(old.codebook_sizes.tolist()))  # the vocabulary of the old IDs
    shape = Qwen2Config(
        vocab_size=tokens.size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    save(SidLM(Qwen2ForCausalLM(shape).eval(), tokens), tmp_path / "model")
    (tmp_path / "work").mkdir()
    wide = GenerateConfig(n_anchors=N_ALL, beam_width=N_ALL, device="cpu")
    data = replace(grown(), cuts=a.Cuts(20, 40, 50))  # user 0 has clicked item 0 by then
    anchors = generate(data, new, space, tmp_path / "model", wide, 0, tmp_path / "work")
    written = {tuple(code) for code in anchors.codes.tolist()}
    assert written == known | fresh


def write_logs(path: Path, n_items: int) -> None:
    vectors = np.random.default_rng(1).standard_normal((60, 5))
    path.mkdir()
    ids = [f"i{n:02d}" for n in range(n_items)]
    pl.DataFrame({"item": ids, "vector": vectors[:n_items].tolist()}).write_parquet(
        path / "items.parquet"
    )
    user = [f"u{n % 5}" for n in range(40)]
    shown = {"user": user, "item": ids[:20] * 2, "click": [n % 2 for n in range(40)]}
    pl.DataFrame(shown).write_parquet(path / "exposures.parquet")


def test_the_recipe_appends_to_an_earlier_run_and_drift_reports_it(tmp_path: Path) -> None:
    def tokenized(name: str, n_items: int, **tokenize: object) -> Path:
        write_logs(tmp_path / f"logs-{name}", n_items)
        values = {
            "name": name,
            "out": str(tmp_path),
            "prepare": {"source": "logs", "path": str(tmp_path / f"logs-{name}")},
            "encode": {"encoder": "given"},
            "tokenize": {"codebook_size": 4, **tokenize},
        }
        recipe = parse_recipe(values)
        run_recipe(recipe, ("prepare", "encode", "tokenize"))
        return recipe.folder / "semantic_ids"

    january = tokenized("january", 40)
    february = tokenized("february", 60, append_to=str(january))
    found = drift_of_folders(january, february)
    assert (found["n_common"], found["n_new"]) == (40, 20)
    assert found["moved_share"] == [0, 0, 0]
    assert 0 < found["residual_norm_new"][-1] < 1
    shown = describe_folder(february)
    assert shown["quality.json"]["appended"]["n_new"] == 20
    assert shown["parents"][str(january)] == describe_folder(january)["fingerprint"]
    with pytest.raises(ConfigError, match="no finished artifact of `tokenize`"):
        tokenized("march", 40, append_to=str(tmp_path / "march" / "semantic_ids"))


def test_a_later_run_reuses_the_anchor_model_of_an_earlier_one(tmp_path: Path) -> None:
    def generated(name: str, n_items: int, **changes: dict[str, object]) -> Path:
        write_logs(tmp_path / f"logs-{name}", n_items)
        tiny = {"hidden_size": 16, "n_layers": 1, "n_heads": 2, "epochs": 1, "device": "cpu"}
        values = {
            "name": name,
            "out": str(tmp_path),
            "prepare": {"source": "logs", "path": str(tmp_path / f"logs-{name}")},
            "encode": {"encoder": "given"},
            "tokenize": {"codebook_size": 4, **changes.get("tokenize", {})},
            "finetune": {**tiny, **changes.get("finetune", {})},
            "generate": {"n_anchors": 60, "beam_width": 60, "device": "cpu"},
            "methods": {"gpl": {"anchors": "llm"}},
        }
        recipe = parse_recipe(values)
        run_recipe(recipe, ("prepare", "encode", "tokenize", "finetune", "generate"))
        return recipe.folder

    january = generated("january", 40)
    reuse = {"reuse": str(january / "anchor_model")}
    february = generated(
        "february", 60, tokenize={"append_to": str(january / "semantic_ids")}, finetune=reuse
    )
    weights = "model.safetensors"
    old = (january / "anchor_model" / weights).read_bytes()
    assert (february / "anchor_model" / weights).read_bytes() == old
    ids = load(february / "semantic_ids", a.SemanticIds)
    anchors = load(february / "anchors" / "llm", a.InterestAnchors)
    written = {tuple(code) for code in anchors.codes.tolist()}
    fresh = {tuple(c) for c in ids.codes[40:].tolist()} - {
        tuple(c) for c in ids.codes[:40].tolist()
    }
    assert fresh
    assert fresh <= written
    with pytest.raises(ConfigError, match="other codebooks"):
        generated("march", 60, finetune=reuse)
    # A model to train on from is an artifact as well: its bytes are held against its manifest.
    damaged = shutil.copytree(january / "anchor_model", tmp_path / "damaged")
    (damaged / weights).write_bytes(old[:-1] + bytes([old[-1] ^ 1]))
    further = {"init": "checkpoint", "checkpoint": str(damaged)}
    with pytest.raises(ArtifactError, match="damaged") as told:
        generated("april", 60, finetune=further)
    assert told.value.where == str(damaged / weights)
