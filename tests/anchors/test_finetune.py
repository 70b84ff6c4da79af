import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prerank import artifacts as a
from prerank import seeds
from prerank.anchors import finetune as stage
from prerank.anchors.config import FinetuneConfig
from prerank.anchors.finetune import _Run, finetune, next_sid_loss, rate_at
from prerank.anchors.model import SidLM, build
from prerank.anchors.tokens import SidTokens
from prerank.errors import ArtifactError, ConfigError, DataError, DivergedError

from .sid_world import dataset, folder, random_codes, random_lm, semantic_ids

SIZES = (4, 3)
TINY = FinetuneConfig(
    hidden_size=16,
    intermediate_size=32,
    n_layers=1,
    n_heads=2,
    max_history=6,
    epochs=3,
    batch_size=8,
    learning_rate=1e-2,
    alpha=0.0,
    held_out=0.2,
    device="cpu",
)


def cyclic(n_users: int = 40, n_items: int = 6) -> a.Dataset:
    """Return users who walk through the items in one cycle: the next item is certain."""
    rng = np.random.default_rng(0)
    starts, lengths = rng.integers(n_items, size=n_users), rng.integers(1, 9, size=n_users)
    runs = [[(s + k) % n_items for k in range(n)] for s, n in zip(starts, lengths, strict=True)]
    return dataset(runs, n_items)


def cyclic_ids() -> a.SemanticIds:
    codes = np.array([[0, 0], [0, 1], [1, 2], [2, 0], [3, 0], [3, 1]], np.int32)
    return semantic_ids(codes, SIZES)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(path).state_dict())


def test_loss_is_the_models_own_cross_entropy_over_each_level() -> None:
    model = build(TINY, SIZES, 0)
    codes = torch.from_numpy(random_codes(5, SIZES))
    items = torch.tensor([[0, 3, 4], [2, -1, -1]])
    loss = next_sid_loss(model, codes, items, torch.float32)
    tokens, expected = model.tokens, [[], []]  # type: ignore[var-annotated]
    for row in ([0, 3, 4], [2]):
        ids = [tokens.begin, *tokens.encode(codes[row].numpy()).ravel().tolist()]
        logits = model.lm(torch.tensor([ids])).logits[0]
        for place, target in enumerate(ids[1:]):
            level = place % 2
            start = tokens.level_starts[level]
            scores = logits[place, start : start + SIZES[level]].log_softmax(-1)
            expected[level].append(-scores[target - start].item())
    np.testing.assert_allclose(loss.tolist(), [np.mean(level) for level in expected], atol=1e-5)


def gradients(
    model: SidLM, items: torch.Tensor, keep_little: bool = False
) -> dict[str, torch.Tensor]:
    loss = next_sid_loss(
        model, torch.from_numpy(random_codes(5, SIZES)), items, torch.float32, keep_little
    )
    model.lm.zero_grad()
    loss.mean().backward()
    return {name: value.grad.clone() for name, value in model.trainable().items()}


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_joined_weights_train_like_the_models_own_forward_pass(
    kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SidLM(random_lm(SIZES, kv_heads=kv_heads).train(), SidTokens(0, SIZES))
    items = torch.tensor([[0, 3, 4, 1], [2, 1, -1, -1]])
    ours, little = gradients(model, items), gradients(model, items, keep_little=True)
    monkeypatch.setattr(stage, "is_plain", lambda _: False)
    theirs = gradients(model, items)
    assert set(ours) == set(theirs) == set(little)
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(little[name], expected, atol=2e-5, rtol=1e-4)


def test_parts_of_a_batch_sum_to_the_batch(tmp_path: Path) -> None:
    losses = []
    for name, budget in (("whole", 10_000), ("parts", 24)):
        config = TINY.model_copy(update={"tokens_at_once": budget, "recompute": name == "parts"})
        out = folder(tmp_path / name)
        report = finetune(cyclic(), cyclic_ids(), config, 0, out, folder(tmp_path / f"w-{name}"))
        losses.append(report.train_loss + report.held_out_loss)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


def test_bfloat16_arithmetic_learns_too(tmp_path: Path) -> None:
    config = TINY.model_copy(update={"dtype": "bfloat16", "epochs": 10})
    out = folder(tmp_path / "out")
    report = finetune(cyclic(), cyclic_ids(), config, 0, out, folder(tmp_path / "work"))
    assert report.held_out_loss[-1] < report.held_out_loss[0]
    stored = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert all(value.dtype == torch.float32 for value in stored.values())


def test_learns_a_certain_next_item(tmp_path: Path) -> None:
    config = TINY.model_copy(update={"epochs": 25})
    out, work = folder(tmp_path / "out"), folder(tmp_path / "work")
    report = finetune(cyclic(), cyclic_ids(), config, 0, out, work)
    assert report.uniform_loss == pytest.approx((math.log(4) + math.log(3)) / 2)
    # Only the first item of each user is uncertain.
    assert report.held_out_loss[-1] < 0.5 * report.uniform_loss
    assert report.held_out_loss[-1] < report.held_out_loss[0]
    assert report.n_sequences == 32
    stored = json.loads((out / "finetune.json").read_text())
    assert stored["held_out_loss"] == report.held_out_loss
    assert "tokens_per_second" not in stored


def test_folder_is_read_by_plain_transformers(tmp_path: Path) -> None:
    out = folder(tmp_path / "out")
    finetune(cyclic(), cyclic_ids(), TINY, 0, out, folder(tmp_path / "work"))
    lm = AutoModelForCausalLM.from_pretrained(out)
    tokens = SidTokens.load(out)
    assert lm.config.vocab_size == tokens.end == 2 + 4 + 3
    assert tokens.level_starts == (2, 6)
    assert not list(out.rglob("*.bin")) + list(out.rglob("*.pt"))


def test_same_seed_same_bytes_and_another_seed_other_weights(tmp_path: Path) -> None:
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        out = folder(tmp_path / name)
        finetune(cyclic(), cyclic_ids(), TINY, seed, out, folder(tmp_path / f"work-{name}"))
        digests.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert digests[0] == digests[1]
    assert digests[0]["model.safetensors"] != digests[2]["model.safetensors"]


def killed(
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    data: a.Dataset,
    config: FinetuneConfig,
    out: Path,
    work: Path,
) -> None:
    """Train until epoch ``at`` is over and its state is stored, and die there."""

    def kill(epoch: int, *_: object) -> str:
        if epoch == at:
            raise KeyboardInterrupt
        return ""

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "_line", kill)
        finetune(data, cyclic_ids(), config, 0, out, work)


def test_a_killed_run_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = folder(tmp_path / "whole")
    expected = finetune(cyclic(), cyclic_ids(), TINY, 0, whole, folder(tmp_path / "work-1"))

    work, out = folder(tmp_path / "work-2"), folder(tmp_path / "out")
    killed(monkeypatch, 1, cyclic(), TINY, out, work)
    assert not list(out.iterdir())
    report = finetune(cyclic(), cyclic_ids(), TINY, 0, out, work)
    assert report.train_loss == expected.train_loss
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def noise() -> a.Dataset:
    """Return users who take items at random: there is nothing to learn, only to remember."""
    rng = np.random.default_rng(3)
    return dataset([rng.integers(6, size=8).tolist() for _ in range(40)], 6)


REMEMBERS = TINY.model_copy(update={"epochs": 40, "patience": 4, "hidden_size": 32})


def test_what_is_learned_by_heart_is_not_kept(tmp_path: Path) -> None:
    out, work = folder(tmp_path / "out"), folder(tmp_path / "work")
    report = finetune(noise(), cyclic_ids(), REMEMBERS, 0, out, work)
    loss, kept = report.held_out_loss, report.kept_epoch
    assert len(loss) == len(report.train_loss) == kept + 4 < 40
    assert loss[kept - 1] <= 1.005 * min(loss)
    assert all(one > 1.005 * min(loss[: kept + n]) for n, one in enumerate(loss[kept:], 1))
    assert np.mean(report.held_out_by_level) == pytest.approx(loss[kept - 1])
    stored, made = load_file(work / f"epoch-{kept}.safetensors"), weights(out)
    named = {k.removeprefix("weight:"): v for k, v in stored.items() if k.startswith("weight:")}
    compared = [key for key in named if key in made]
    assert any("layers" in key for key in compared) and any("embed" in key for key in compared)
    for key in compared:
        torch.testing.assert_close(made[key], named[key], rtol=0, atol=0)
    left = sorted(file.name for file in work.glob("*.safetensors"))
    assert left == sorted({f"epoch-{kept}.safetensors", f"epoch-{len(loss)}.safetensors"})

    last = finetune(
        noise(),
        cyclic_ids(),
        REMEMBERS.model_copy(update={"patience": 0}),
        0,
        folder(tmp_path / "all"),
        folder(tmp_path / "work-all"),
    )
    assert last.kept_epoch == len(last.train_loss) == 40
    assert last.held_out_loss[: len(loss)] == loss
    assert last.held_out_loss[-1] > 1.005 * min(last.held_out_loss)


@pytest.mark.parametrize("damage", [False, True])
def test_a_run_killed_behind_its_best_epoch_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bool
) -> None:
    whole = folder(tmp_path / "whole")
    expected = finetune(noise(), cyclic_ids(), REMEMBERS, 0, whole, folder(tmp_path / "work-1"))

    work, out = folder(tmp_path / "work-2"), folder(tmp_path / "out")
    killed(monkeypatch, expected.kept_epoch + 1, noise(), REMEMBERS, out, work)
    kept = work / f"epoch-{expected.kept_epoch}.safetensors"
    if damage:
        kept.write_bytes(kept.read_bytes()[:-7])
    report = finetune(noise(), cyclic_ids(), REMEMBERS, 0, out, work)
    assert report.held_out_loss == expected.held_out_loss
    assert report.kept_epoch == expected.kept_epoch
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_passes_follow_from_the_size_of_the_histories(tmp_path: Path) -> None:
    auto = FinetuneConfig()
    assert [auto.passes(n) for n in (0, 1, 1e5, 4e5, 1e9)] == [30, 30, 20, 5, 3]
    assert [auto.passes(n, guarded=False) for n in (1, 1e5, 4e5)] == [10, 10, 5]
    assert FinetuneConfig(epochs=7).passes(1e9) == FinetuneConfig(epochs=7).passes(1, False) == 7
    config = TINY.model_copy(update={"epochs": 0, "patience": 0, "learning_rate": 1e-5})
    out = folder(tmp_path / "out")
    report = finetune(cyclic(), cyclic_ids(), config, 0, out, folder(tmp_path / "work"))
    assert len(report.train_loss) == report.kept_epoch == 10


def test_the_last_epoch_within_half_a_percent_of_the_lowest_loss_is_kept() -> None:
    nan = math.nan
    assert stage._keeps([2.0]) and stage._keeps([nan])
    assert stage._keeps([2.0, 1.0]) and stage._keeps([2.0, 1.0, 1.004])
    assert not stage._keeps([2.0, 1.0, 1.006])
    assert not stage._keeps([2.0, nan]) and not stage._keeps([2.0, nan, nan])
    assert stage._keeps([nan, 3.0]) and not stage._keeps([nan, 3.0, 3.1])


def test_processes_agree_on_the_epoch_where_they_stop(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    script = Path(__file__).with_name("two_processes.py")
    root = str(script.parent.parent)
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    run = subprocess.run(
        [*launch, "--standalone", str(script), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    one, two = (
        json.loads((tmp_path / f"rank-{rank}" / "report.json").read_text()) for rank in (0, 1)
    )
    assert one["held_out_loss"] == two["held_out_loss"]
    assert one["kept_epoch"] == two["kept_epoch"] < len(one["train_loss"]) < 40
    kept = f"epoch-{one['kept_epoch']}.safetensors"
    made = [load_file(tmp_path / f"rank-{rank}" / "work" / kept) for rank in (0, 1)]
    for key, value in made[0].items():
        torch.testing.assert_close(made[1][key], value)


def test_a_handful_of_held_out_users_decides_nothing(tmp_path: Path) -> None:
    config = REMEMBERS.model_copy(update={"held_out": 0.1})  # 4 of 40
    out = folder(tmp_path / "out")
    report = finetune(noise(), cyclic_ids(), config, 0, out, folder(tmp_path / "work"))
    assert report.kept_epoch == len(report.train_loss) == 40
    assert report.held_out_loss[-1] > 1.005 * min(report.held_out_loss)


def test_sets_are_shuffled_anew_in_each_epoch() -> None:
    train = stage.anchor_sequences(dataset([list(range(9))], 9, "none"))
    keep = np.ones(9, np.float32)
    epochs = [
        stage._epoch_windows(train, keep, 9, True, seeds.rng(0, "epoch", n)).item.tolist()
        for n in (0, 1)
    ]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(9))


def test_learning_rate_rises_and_falls() -> None:
    assert rate_at(0.025, 0.05) == pytest.approx(0.5)
    assert rate_at(0.05, 0.05) == pytest.approx(1.0)
    assert rate_at(0.525, 0.05) == pytest.approx(0.01 + 0.99 / 2)
    assert rate_at(0.0, 0.0) == pytest.approx(1.0)


def test_matrices_decay_and_token_rows_do_not() -> None:
    parameters = build(TINY, SIZES, 0).trainable()
    decayed, spared = stage._decay_groups(parameters, 0.1)
    assert decayed["weight_decay"] == 0.1 and spared["weight_decay"] == 0.0
    assert all(value.ndim == 2 for value in decayed["params"])
    spared_ids = {id(value) for value in spared["params"]}
    assert id(parameters["model.embed_tokens.weight"]) in spared_ids
    assert id(parameters["model.norm.weight"]) in spared_ids


def test_no_history_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no user has a positive"):
        finetune(dataset([[]], 6), cyclic_ids(), TINY, 0, tmp_path, tmp_path)


def test_a_device_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    config = TINY.model_copy(update={"device": "warp:9"})
    with pytest.raises(ConfigError, match="device is not there"):
        finetune(cyclic(), cyclic_ids(), config, 0, tmp_path, tmp_path)


def test_config_agrees_with_itself() -> None:
    for values in (
        {"init": "checkpoint"},
        {"checkpoint": "somewhere"},
        {"lora": True},
        {"hidden_size": 20, "n_heads": 4},
    ):
        with pytest.raises(ConfigError):
            FinetuneConfig.parse(values)


def test_a_folder_without_a_token_map_is_no_anchor_model(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no anchor model"):
        SidTokens.load(tmp_path)


def test_training_that_diverges_is_told(tmp_path: Path) -> None:
    out, work = folder(tmp_path / "out"), folder(tmp_path / "work")
    config = TINY.model_copy(update={"learning_rate": 1e38})
    with pytest.raises(DivergedError, match=r"finetune\.learning_rate"):
        finetune(cyclic(), cyclic_ids(), config, 0, out, work)


def test_the_epoch_before_training_diverges_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch = _Run.train_epoch
    good = finetune(cyclic(), cyclic_ids(), TINY, 0, folder(tmp_path / "1"), folder(tmp_path / "2"))

    def breaks(run: _Run, windows: Any, number: int, rng: Any) -> float:
        loss = epoch(run, windows, number, rng)
        if number < 2:
            return loss
        next(iter(run.parameters.values())).data.fill_(math.nan)
        return math.nan

    monkeypatch.setattr(_Run, "train_epoch", breaks)
    out, work = folder(tmp_path / "out"), folder(tmp_path / "work")
    bad = finetune(cyclic(), cyclic_ids(), TINY, 0, out, work)
    assert bad.train_loss == good.train_loss[:2]
    assert bad.held_out_loss == good.held_out_loss[:2]
    assert bad.kept_epoch == 2
    assert all(value.isfinite().all() for value in weights(out).values())
