"""Continuing from a checkpoint: in full and with LoRA, tied head and untied, hostile settings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GraniteConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from prerank import seeds
from prerank.anchors.config import FinetuneConfig, GenerateConfig
from prerank.anchors.finetune import finetune, next_sid_loss
from prerank.anchors.generate import generate
from prerank.anchors.model import build
from prerank.anchors.tokens import SidTokens
from prerank.artifacts import InterestAnchors
from prerank.errors import ConfigError

from .sid_world import dataset, folder, random_codes, semantic_ids, unit_rows

SIZES = (4, 3)
N_WORDS = 10
IDS = semantic_ids(random_codes(8, SIZES), SIZES)
DATA = dataset([[0, 1, 2], [3, 4], [5, 6, 7, 0], [1]], 8)


def write_checkpoint(path: Path, *, tied: bool, n_rows: int = N_WORDS) -> Path:
    """Write a tiny Qwen2 model with a word tokenizer, and settings that would wreck any beam."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        about = Qwen2Config(
            vocab_size=n_rows,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=tied,
        )
        Qwen2ForCausalLM(about).save_pretrained(path)
    words = {f"word{n}": n for n in range(N_WORDS - 1)} | {"<|endoftext|>": N_WORDS - 1}
    tokenizer = Tokenizer(WordLevel(words, unk_token="word0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="word0").save_pretrained(path)
    make_hostile(path)
    return path


def make_hostile(path: Path) -> None:
    GenerationConfig(do_sample=True, temperature=5.0, top_k=1).save_pretrained(path)


def config(checkpoint: Path, *, lora: bool) -> FinetuneConfig:
    return FinetuneConfig(
        init="checkpoint",
        checkpoint=str(checkpoint),
        lora=lora,
        lora_rank=2,
        epochs=2,
        batch_size=2,
        learning_rate=1e-2,
        alpha=0.0,
        held_out=0.0,
        device="cpu",
    )


def anchors_of(model: Path, work: Path) -> InterestAnchors:
    decoding = GenerateConfig(n_anchors=4, beam_width=8, device="cpu")
    return generate(DATA, IDS, unit_rows(8), model, decoding, 0, folder(work))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("n_rows", [N_WORDS, 64])
def test_full_training_changes_the_new_rows_and_keeps_old_words(
    tmp_path: Path, tied: bool, n_rows: int
) -> None:
    checkpoint = write_checkpoint(tmp_path / "base", tied=tied, n_rows=n_rows)
    out = folder(tmp_path / "out")
    finetune(DATA, IDS, config(checkpoint, lora=False), 0, out, folder(tmp_path / "work"))
    lm, tokens = AutoModelForCausalLM.from_pretrained(out), SidTokens.load(out)
    assert tokens.first == N_WORDS
    assert lm.config.vocab_size == max(n_rows, tokens.end)
    assert (lm.get_input_embeddings().weight is lm.lm_head.weight) is tied
    old = AutoModelForCausalLM.from_pretrained(checkpoint).get_input_embeddings().weight
    assert torch.equal(lm.get_input_embeddings().weight[:N_WORDS], old[:N_WORDS])
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.convert_ids_to_tokens(tokens.level_starts[1] + 2) == "<|sid_1_2|>"


@pytest.mark.parametrize("tied", [True, False])
def test_lora_trains_new_rows_and_merged_equals_adapter(tmp_path: Path, tied: bool) -> None:
    peft = pytest.importorskip("peft")
    checkpoint = write_checkpoint(tmp_path / "base", tied=tied)
    settings = config(checkpoint, lora=True)
    out = folder(tmp_path / "out")
    finetune(DATA, IDS, settings, 0, out, folder(tmp_path / "work"))

    merged, tokens = AutoModelForCausalLM.from_pretrained(out), SidTokens.load(out)
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    base.resize_token_embeddings(tokens.end, mean_resizing=False)
    adapted = peft.PeftModel.from_pretrained(base, out / "adapter").eval()
    history = torch.tensor([[tokens.begin, *tokens.encode(IDS.codes[[0, 3, 5]]).ravel().tolist()]])
    with torch.inference_mode():
        ours, theirs = merged(history).logits, adapted(history).logits
    new = slice(tokens.first, tokens.end)
    torch.testing.assert_close(ours[..., new], theirs[..., new], atol=1e-5, rtol=1e-5)

    started = build(settings, SIZES, seeds.derive(0, "finetune", "init"))
    for rows, layer in (
        (started.input_rows(), merged.get_input_embeddings()),
        (started.head_rows(), merged.lm_head),
    ):
        assert not torch.isclose(rows[2:], layer.weight[N_WORDS + 2 :]).all(dim=1).any()
    is_tied = merged.get_input_embeddings().weight is merged.lm_head.weight
    assert is_tied is tied
    assert started.input_rows().requires_grad and started.head_rows().requires_grad
    assert (started.input_rows() is started.head_rows()) is tied
    frozen = AutoModelForCausalLM.from_pretrained(checkpoint)
    for old, now in (
        (frozen.get_input_embeddings(), merged.get_input_embeddings()),
        (frozen.lm_head, merged.lm_head),
    ):
        assert torch.equal(old.weight, now.weight[:N_WORDS])


@pytest.mark.parametrize("lora", [True, False])
def test_new_rows_learn_and_the_rest_is_as_asked(tmp_path: Path, lora: bool) -> None:
    if lora:
        pytest.importorskip("peft")
    settings = config(write_checkpoint(tmp_path / "base", tied=False), lora=lora)
    model = build(settings, SIZES, 0)
    trained = set(model.trainable())
    if lora:
        assert all("lora_" in name or "trainable_tokens" in name for name in trained)
    else:
        assert len(trained) == len(dict(model.lm.named_parameters()))
    before = model.input_rows().detach().clone(), model.head_rows().detach().clone()
    again = build(settings, SIZES, 0)
    assert torch.equal(before[0], again.input_rows()) and torch.equal(before[1], again.head_rows())
    assert not torch.equal(*before)


@pytest.mark.parametrize("tied", [True, False])
def test_training_begins_with_the_loss_of_knowing_nothing(tmp_path: Path, tied: bool) -> None:
    path = write_checkpoint(tmp_path / "base", tied=tied)
    loud = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():  # as after pre-training: rows far apart and off 0, a large last norm
        loud.get_input_embeddings().weight.mul_(10).add_(torch.linspace(-0.2, 0.2, 16))
        loud.lm_head.weight.copy_(loud.get_input_embeddings().weight)
        loud.model.norm.weight.fill_(5.0)
    loud.save_pretrained(path)
    model = build(config(path, lora=False), SIZES, 0)
    items = torch.tensor([[0, 1, 2], [3, 4, -1]])
    loss = next_sid_loss(model, torch.from_numpy(IDS.codes), items, torch.float32)
    np.testing.assert_allclose(loss.detach(), np.log(SIZES), atol=0.2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [True, False])
def test_accumulation_and_activation_checkpointing_change_no_loss(
    tmp_path: Path, lora: bool, dtype: str
) -> None:
    if lora:
        pytest.importorskip("peft")
    base = write_checkpoint(tmp_path / "base", tied=True)
    losses = []
    for name, changes in (("whole", {}), ("parts", {"tokens_at_once": 5, "recompute": True})):
        chosen = config(base, lora=lora).model_copy(update={"dtype": dtype, "batch_size": 4})
        out = folder(tmp_path / name)
        changed = chosen.model_copy(update=changes)
        report = finetune(DATA, IDS, changed, 0, out, folder(tmp_path / f"work-{name}"))
        losses.append(report.train_loss)
        stored = AutoModelForCausalLM.from_pretrained(out).state_dict().values()
        assert all(value.dtype == torch.float32 for value in stored)
    np.testing.assert_allclose(*losses, rtol=1e-5 if dtype == "float32" else 1e-2)


def test_layers_with_adapters_are_recomputed_by_their_own_switch(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    settings = config(write_checkpoint(tmp_path / "base", tied=True), lora=True)
    for recompute in (True, False):
        model = build(settings.model_copy(update={"recompute": recompute}), SIZES, 0)
        assert model.decoder.gradient_checkpointing is recompute


def test_a_killed_lora_run_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    from prerank.anchors import finetune as stage

    settings = config(write_checkpoint(tmp_path / "base", tied=True), lora=True)
    whole, out = folder(tmp_path / "whole"), folder(tmp_path / "out")
    finetune(DATA, IDS, settings, 0, whole, folder(tmp_path / "work-1"))

    def kill(*_: object) -> str:
        raise KeyboardInterrupt

    work = folder(tmp_path / "work-2")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "_line", kill)
        finetune(DATA, IDS, settings, 0, out, work)
    finetune(DATA, IDS, settings, 0, out, work)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_hostile_generation_settings_change_nothing(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "base", tied=True)
    out = folder(tmp_path / "out")
    finetune(DATA, IDS, config(checkpoint, lora=False), 0, out, folder(tmp_path / "work"))
    saved = json.loads((out / "generation_config.json").read_text())
    assert not saved.get("do_sample") and "temperature" not in saved
    clean = anchors_of(out, tmp_path / "clean")
    make_hostile(out)
    hostile = anchors_of(out, tmp_path / "hostile")
    assert np.array_equal(clean.codes, hostile.codes)
    assert np.array_equal(clean.logprob, hostile.logprob)


def test_an_anchor_model_can_be_trained_further(tmp_path: Path) -> None:
    small = FinetuneConfig(
        hidden_size=16, intermediate_size=32, n_layers=1, n_heads=2, epochs=1, device="cpu"
    )
    first, second = folder(tmp_path / "first"), folder(tmp_path / "second")
    finetune(DATA, IDS, small, 0, first, folder(tmp_path / "work-1"))
    finetune(DATA, IDS, config(first, lora=False), 0, second, folder(tmp_path / "work-2"))
    assert SidTokens.load(second) == SidTokens.load(first)
    other = semantic_ids(random_codes(8, (4, 5)), (4, 5))
    with pytest.raises(ConfigError, match="trained on other semantic IDs"):
        finetune(DATA, other, config(first, lora=False), 0, second, folder(tmp_path / "work-3"))


def test_clear_errors_for_unfit_checkpoints(tmp_path: Path) -> None:
    missing = config(tmp_path / "nowhere", lora=False)
    with pytest.raises(ConfigError, match="cannot be read"):
        build(missing, SIZES, 0)
    small = config(write_checkpoint(tmp_path / "small", tied=True, n_rows=4), lora=False)
    with pytest.raises(ConfigError, match="do not belong together"):
        build(small, SIZES, 0)


def test_a_model_of_other_or_fewer_tokens_is_refused(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "base", tied=True)
    SidTokens(N_WORDS, SIZES).save(checkpoint)  # a token map beside weights that know no such rows
    with pytest.raises(ConfigError, match="vocabulary is too small"):
        anchors_of(checkpoint, tmp_path / "work-1")
    SidTokens(0, (2, 2)).save(checkpoint)
    with pytest.raises(ConfigError, match="other semantic IDs"):
        anchors_of(checkpoint, tmp_path / "work-2")


# ---- models that are not quite as plain ----------------------------------------------------------


def write_other(path: Path, about: PreTrainedConfig) -> Path:
    """Write a tiny model of another family, with the tokenizer of `write_checkpoint`."""
    write_checkpoint(path, tied=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(about).save_pretrained(path)
    return path


def gpt2(**more: Any) -> GPT2Config:
    """Learned positions and a dropout of .1."""
    return GPT2Config(vocab_size=N_WORDS, n_embd=16, n_layer=1, n_head=2, **more)


def test_dropout_follows_the_seed_whatever_ran_before_and_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prerank.anchors import finetune as stage

    settings = config(write_other(tmp_path / "base", gpt2()), lora=False)
    weights = []
    for state in (0, 1):
        out = folder(tmp_path / f"out-{state}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(state)
            finetune(DATA, IDS, settings, 0, out, folder(tmp_path / f"work-{state}"))
        weights.append((out / "model.safetensors").read_bytes())

    def kill(*_: object) -> str:
        raise KeyboardInterrupt

    out, work = folder(tmp_path / "again"), folder(tmp_path / "work-again")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "_line", kill)
        finetune(DATA, IDS, settings, 0, out, work)
    finetune(DATA, IDS, settings, 0, out, work)
    assert weights[0] == weights[1] == (out / "model.safetensors").read_bytes()
    still = settings.model_copy(update={"checkpoint": str(tmp_path / "still")})
    write_other(tmp_path / "still", gpt2(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))
    finetune(DATA, IDS, still, 0, out, folder(tmp_path / "work-still"))
    assert (out / "model.safetensors").read_bytes() != weights[0]  # there was dropout


def test_histories_longer_than_the_window_are_told_before_training(tmp_path: Path) -> None:
    fits, short = (
        config(write_other(tmp_path / f"{n}", gpt2(n_positions=n)), lora=False) for n in (8, 7)
    )
    finetune(DATA, IDS, fits, 0, folder(tmp_path / "out"), folder(tmp_path / "work-1"))
    with pytest.raises(ConfigError, match="at most 3 items of 2 tokens") as caught:
        finetune(DATA, IDS, short, 0, folder(tmp_path / "out-2"), folder(tmp_path / "work-2"))
    assert caught.value.where == "finetune.max_history" and caught.value.got == "4"


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_a_head_that_scales_its_logits_is_refused(tmp_path: Path, scale: float) -> None:
    about = GraniteConfig(
        vocab_size=N_WORDS,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        logits_scaling=scale,
    )
    settings = config(write_other(tmp_path / "base", about), lora=False)
    if scale == 1:
        build(settings, SIZES, 0)
        return
    with pytest.raises(ConfigError, match="logits capped or scaled"):
        build(settings, SIZES, 0)
