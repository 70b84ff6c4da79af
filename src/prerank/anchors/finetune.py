"""finetune: histories and semantic IDs -> AnchorModel, by next-semantic-ID prediction.

Every epoch draws its own down-sampling, order and batches from the seed, and leaves its state in
the work folder (safetensors and JSON), so that a killed run goes on at the last epoch and ends with
the same weights.

Letters: B sequences, H items of the longest, L levels, T = H * L tokens, D hidden size, K codes,
M real (unpadded) items of a batch.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy, embedding

from prerank import seeds
from prerank.anchors.config import FinetuneConfig
from prerank.anchors.fused import is_plain, train_forward
from prerank.anchors.model import SidLM, build, require_window, resolve_dtype, save
from prerank.anchors.sequences import (
    Sequences,
    anchor_sequences,
    batches,
    is_unordered,
    keep_probability,
    token_chunks,
)
from prerank.artifacts import Dataset, FloatArray, SemanticIds
from prerank.devices import resolve_device, torch_seed
from prerank.errors import ArtifactError, DataError, DivergedError
from prerank.group import Group
from prerank.progress import log, track
from prerank.store import read_part, write_part, write_whole

REPORT_FILE = "finetune.json"
GRADIENT_CLIP = 1.0
MIN_HELD_OUT = 5  # users: the loss of fewer decides nothing
SAME_LOSS = 1.005  # losses this close are one: of such epochs the last, which saw most, is kept
BETAS = (0.9, 0.95)
OnEpoch = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class FinetuneReport:
    """How the training went.

    Attributes:
        n_parameters: trained parameters.
        n_sequences, n_items: histories trained on, and the items in them before down-sampling.
        train_loss: mean loss (nats a token) of each epoch.
        held_out_loss: the same on held-out users after each epoch; empty if none are held out.
        held_out_by_level: held-out loss of each level after the epoch kept.
        kept_epoch: the epoch, from 1, whose weights were kept.
        uniform_loss: the loss of knowing nothing, mean over levels of ln K.
        tokens_per_second: speed of this process's training steps; not stored.
    """

    n_parameters: int
    n_sequences: int
    n_items: int
    train_loss: list[float] = field(default_factory=list)
    held_out_loss: list[float] = field(default_factory=list)
    held_out_by_level: list[float] = field(default_factory=list)
    kept_epoch: int = 0
    uniform_loss: float = 0.0
    tokens_per_second: float = 0.0


def finetune(
    dataset: Dataset,
    semantic_ids: SemanticIds,
    config: FinetuneConfig,
    seed: int,
    out: Path,
    work: Path,
    on_epoch: OnEpoch | None = None,
) -> FinetuneReport:
    """Train the next-semantic-ID model and write it as a Hugging Face folder.

    Sequences are each user's positives strictly before ``dataset.cuts.anchors``; popular items are
    down-sampled in training, never in the held-out loss (method.md stage 3). Kept are the weights
    of the last epoch whose held-out loss is the lowest or within half a percent of it: on a small
    log a language model soon knows its histories by heart.

    Within a `torch.distributed` group every process takes its rows of each batch and gradients are
    added up: the weights are those of one process, up to the order of float sums and, where the
    model has dropout, its draws.

    Args:
        out: an existing folder to fill: model, ``sid_tokens.json``, ``finetune.json``.
        work: a folder that survives a kill, of this process alone; holds the state after the last
            epoch, and that after the one kept so far.
        on_epoch: told the epoch's number, from 0, and its figures, after each epoch.

    Raises:
        DataError: no user has a positive before the cut.
        ConfigError: the checkpoint or the device cannot be used, or histories are longer than the
            model's window.
        ArtifactError: the state of the epoch to keep was damaged on the way.
        DivergedError: the loss left the finite numbers before any epoch could be kept.
    """
    histories = anchor_sequences(dataset)
    if not len(histories.item):
        raise DataError(
            "no user has a positive interaction before the anchor cut", where="finetune"
        )
    train, held_out = _split(histories, config.held_out, seed)
    shuffle = is_unordered(dataset, config.order)
    sizes = tuple(int(size) for size in semantic_ids.codebook_sizes)

    model = build(config, sizes, seeds.derive(seed, "finetune", "init"))
    # Read are the token that begins and all of a history's but the last.
    longest = min(int(histories.lengths.max()), config.max_history)
    require_window(model.lm, longest, len(sizes), "finetune.max_history")
    device = resolve_device(config.device)
    model.lm.to(device)
    guarded = config.patience > 0 and int((held_out.lengths > 0).sum()) >= MIN_HELD_OUT
    n_epochs = config.passes(len(train.item), guarded)
    run = _Run(model, config, n_epochs, device, torch.from_numpy(semantic_ids.codes).to(device))
    keep = keep_probability(
        train.item, len(semantic_ids.codes), config.alpha, config.frequency_quantile
    )
    fixed = seeds.rng(seed, "finetune", "held-out")
    held_windows = (held_out.shuffled(fixed) if shuffle else held_out).windows(config.max_history)
    state = run.restore(work)
    n_tokens, elapsed = 0, 0.0
    for epoch in track(range(len(state.train_loss), n_epochs), "epochs"):
        if guarded and epoch - state.kept_epoch >= config.patience:
            break
        rng = seeds.rng(seed, "finetune", "epoch", epoch)
        windows = _epoch_windows(train, keep, config.max_history, shuffle, rng)
        started = time.monotonic()
        luck = seeds.derive(seed, "finetune", "dropout", epoch, run.group.rank)
        with torch_seed(luck, device):
            state.train_loss.append(run.train_epoch(windows, epoch, rng))
        elapsed += time.monotonic() - started
        n_tokens += len(windows.item) * len(sizes)
        by_level = run.evaluate(held_windows) if len(held_out.item) else []
        if by_level:
            state.held_out_loss.append(float(np.mean(by_level)))
        if not math.isfinite(state.train_loss[-1] + sum(by_level if guarded else ())):
            run.stop_diverged(work, state)
            break
        if not guarded or _keeps(state.held_out_loss):
            state.kept_epoch, state.held_out_by_level = epoch + 1, by_level
        run.store(work, state)
        rate = n_tokens / max(elapsed, 1e-9)
        log(_line(epoch, n_epochs, state, rate))
        if on_epoch is not None:
            on_epoch(epoch, _figures(state, rate))
    if state.kept_epoch < len(state.train_loss):
        log(f"finetune: epoch {state.kept_epoch} is kept, later ones know the held-out users less")
        run.go_back(work, state.kept_epoch)
    report = FinetuneReport(
        n_parameters=sum(value.numel() for value in model.trainable().values()),
        n_sequences=int((train.lengths > 0).sum()),
        n_items=len(train.item),
        uniform_loss=float(np.mean(np.log(sizes))),
        tokens_per_second=n_tokens / elapsed if elapsed else 0.0,
        **asdict(state),
    )
    model.lm.to("cpu")
    save(model, out)
    stored = {k: v for k, v in asdict(report).items() if k != "tokens_per_second"}
    (out / REPORT_FILE).write_text(json.dumps(stored, indent=1))
    return report


def _split(histories: Sequences, share: float, seed: int) -> tuple[Sequences, Sequences]:
    """Return the histories of training users and of held-out users; empty ones are dropped."""
    users = np.flatnonzero(histories.lengths > 0)
    shuffled = seeds.rng(seed, "finetune", "users").permutation(users)
    n_out = min(math.ceil(share * len(users)), len(users) - 1)
    return histories.take(np.sort(shuffled[n_out:])), histories.take(np.sort(shuffled[:n_out]))


def _epoch_windows(
    train: Sequences,
    keep: FloatArray,
    max_history: int,
    shuffle: bool,
    rng: np.random.Generator,
) -> Sequences:
    kept = train.keep(rng.random(len(train.item)) < keep[train.item])
    return (kept.shuffled(rng) if shuffle else kept).windows(max_history)


def _keeps(loss: Sequence[float]) -> bool:
    """Say whether the last epoch of these held-out losses is kept so far."""
    known = [one for one in loss[:-1] if not math.isnan(one)]
    return not known or loss[-1] <= SAME_LOSS * min(known)


def _figures(state: _State, rate: float) -> dict[str, float]:
    found = {"loss": state.train_loss[-1], "tokens_per_second": rate}
    return found | ({"held_out_loss": state.held_out_loss[-1]} if state.held_out_loss else {})


def _line(epoch: int, epochs: int, state: _State, rate: float) -> str:
    held_out = f", held-out {state.held_out_loss[-1]:.4f}" if state.held_out_loss else ""
    return (
        f"finetune: epoch {epoch + 1}/{epochs}: loss {state.train_loss[-1]:.4f}{held_out} "
        f"({rate:,.0f} tokens/s)"
    )


@dataclass
class _State:
    train_loss: list[float] = field(default_factory=list)
    held_out_loss: list[float] = field(default_factory=list)
    held_out_by_level: list[float] = field(default_factory=list)
    kept_epoch: int = 0


class _Run:
    """One training run: model, optimiser and rate; the only mutable thing here."""

    def __init__(
        self,
        model: SidLM,
        config: FinetuneConfig,
        n_epochs: int,
        device: torch.device,
        codes_IL: torch.Tensor,
    ) -> None:
        self.model, self.config, self.device, self.codes_IL = model, config, device, codes_IL
        self.n_epochs = n_epochs
        self.dtype = resolve_dtype(config.dtype, device)
        self.group = Group.current()
        self.parameters = model.trainable()
        self.optimizer = torch.optim.AdamW(
            _decay_groups(self.parameters, config.weight_decay),
            lr=config.learning_rate,
            betas=BETAS,
            fused=True,
        )

    def train_epoch(self, windows: Sequences, epoch: int, rng: np.random.Generator) -> float:
        """Take one pass over ``windows``; return the mean loss of a token."""
        self.model.lm.train()
        parts = batches(windows.lengths, self.config.batch_size, rng)
        total, n_items = 0.0, 0
        for step, rows in enumerate(track(parts, "batches")):
            progress = (epoch + step / len(parts)) / self.n_epochs
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.learning_rate * rate_at(progress, self.config.warmup)
            batch_items = int(windows.lengths[rows].sum())
            own = rows[self.group.rank :: self.group.size]
            for part in self._parts(windows, own) if len(own) else []:
                share = int(windows.lengths[part].sum()) / batch_items
                loss = self._loss(windows, part).mean() * share
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach()) * batch_items
            self.group.add_gradients(self.parameters.values())
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), GRADIENT_CLIP)
            self.optimizer.step()
            self.optimizer.zero_grad()
            n_items += batch_items
        return self.group.sum(total) / max(n_items, 1)

    @torch.inference_mode()
    def evaluate(self, windows: Sequences) -> list[float]:
        """Return the mean loss of each level over ``windows``, (L,)."""
        self.model.lm.eval()
        total_L, n_items = np.zeros(self.codes_IL.shape[1]), 0
        for rows in self._parts(windows, np.argsort(windows.lengths, kind="stable")):
            batch_items = int(windows.lengths[rows].sum())
            total_L += self._loss(windows, rows).double().cpu().numpy() * batch_items
            n_items += batch_items
        # Processes must agree to the last digit: what they keep and when they stop follows from it.
        return [self.group.sum(float(value)) / self.group.size for value in total_L / n_items]

    def _parts(self, windows: Sequences, rows: NDArray[Any]) -> list[NDArray[Any]]:
        """Cut a batch into what fits `tokens_at_once`; gradients of the parts are summed."""
        n_levels, budget = self.codes_IL.shape[1], self.config.tokens_at_once
        return token_chunks(rows, windows.lengths[rows] * n_levels, budget, len(rows))

    def _loss(self, windows: Sequences, rows: NDArray[Any]) -> torch.Tensor:
        items_BH, _ = windows.padded(rows)
        items = torch.from_numpy(items_BH).to(self.device)
        little = self.config.recompute
        return next_sid_loss(self.model, self.codes_IL, items, self.dtype, little)

    def store(self, work: Path, state: _State) -> None:
        """Write weights, optimiser state and losses; the JSON, written last, says it is whole."""
        tensors = {f"weight:{name}": value.detach() for name, value in self.parameters.items()}
        for name, value in self.parameters.items():
            for key, moment in self.optimizer.state[value].items():
                tensors[f"{key}:{name}"] = moment
        epoch = len(state.train_loss)
        write_part(_state_file(work, epoch), {k: t.cpu().numpy() for k, t in tensors.items()})
        write_whole(work / "state.json", json.dumps(asdict(state)))
        for file in work.glob("epoch-*.safetensors"):
            if file not in (_state_file(work, epoch), _state_file(work, state.kept_epoch)):
                file.unlink(missing_ok=True)

    def restore(self, work: Path) -> _State:
        """Read the state that `store` wrote, if any is whole; return the losses so far."""
        try:
            state = _State(**json.loads((work / "state.json").read_text()))
        except (OSError, ValueError, TypeError):
            return _State()
        kept, last = state.kept_epoch, len(state.train_loss)
        whole = kept == last or read_part(_state_file(work, kept)) is not None
        arrays = read_part(_state_file(work, last)) if whole else None
        if arrays is None:
            log("finetune: the state of an epoch is damaged; starting again")
            return _State()
        tensors = {key: torch.from_numpy(array).to(self.device) for key, array in arrays.items()}
        self._read(tensors)
        for key, tensor in tensors.items():
            kind, name = key.split(":", 1)
            if kind != "weight":
                self.optimizer.state[self.parameters[name]][kind] = tensor
        log(f"finetune: going on after epoch {last}")
        return state

    def stop_diverged(self, work: Path, state: _State) -> None:
        """Go back to the epoch kept before the last one; raise if there is none."""
        epoch = len(state.train_loss)
        if not state.kept_epoch:
            raise DivergedError.of(epoch, "finetune.learning_rate", self.config.learning_rate)
        log(f"finetune: the loss of epoch {epoch} is not finite; epoch {state.kept_epoch} is kept")
        del state.train_loss[epoch - 1 :], state.held_out_loss[epoch - 1 :]
        self.go_back(work, state.kept_epoch)

    def go_back(self, work: Path, epoch: int) -> None:
        """Take the weights of an earlier epoch that `store` wrote.

        Raises:
            ArtifactError: its state is damaged.
        """
        file = _state_file(work, epoch)
        arrays = read_part(file)
        if arrays is None:
            raise ArtifactError(
                "the state of the epoch to keep is damaged",
                where=str(file),
                hint="start the same command again: it trains anew",
            )
        self._read({key: torch.from_numpy(array) for key, array in arrays.items()})

    def _read(self, tensors: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(tensors[f"weight:{name}"])


def _state_file(work: Path, epoch: int) -> Path:
    return work / f"epoch-{epoch}.safetensors"


def next_sid_loss(
    model: SidLM,
    codes_IL: torch.Tensor,
    items_BH: torch.Tensor,
    dtype: torch.dtype,
    keep_little: bool = False,
) -> torch.Tensor:
    """Return (L,): the mean cross-entropy of each level's next code, nats.

    The input is ``begin`` and every token but the last, so position h * L + l predicts the code of
    level l of item h. Logits are taken over the level's own codes only.

    Args:
        codes_IL: (I, L) int32 codes of all items, on the model's device.
        items_BH: (B, H) int32 items, padded on the right with -1; at least one is real.
        dtype: arithmetic of the decoder; bfloat16 is used through autocast.
        keep_little: activation checkpointing: keep each layer's input only. Architectures that
            `fused` cannot run do it by their own switch, see `build`.
    """
    tokens = model.tokens
    is_real_BH = items_BH >= 0
    codes_BHL = codes_IL[items_BH.clamp(min=0)].long()
    starts_L = codes_BHL.new_tensor(tokens.level_starts) - tokens.first
    token_BT = (codes_BHL + starts_L).flatten(1)
    begin_B1 = token_BT.new_full((len(token_BT), 1), tokens.begin - tokens.first)
    input_BT = torch.cat([begin_B1, token_BT[:, :-1]], dim=1)

    use_autocast = dtype != torch.float32
    with torch.autocast(items_BH.device.type, dtype=dtype, enabled=use_autocast):
        # Padding stands on the right: no causal query sees it, so no mask is built.
        inputs_BTD = embedding(input_BT, model.input_rows())
        if is_plain(model.decoder):
            hidden_BTD = train_forward(model.decoder, inputs_BTD, keep_little)
        else:
            hidden_BTD = model.decoder(inputs_embeds=inputs_BTD, use_cache=False)[0]
    # index_select: the backward pass of a boolean index is many times slower.
    real_M = is_real_BH.flatten().nonzero().squeeze(1)
    hidden_XLD = torch.unflatten(hidden_BTD, 1, (-1, tokens.n_levels)).flatten(0, 1)
    hidden_MLD = hidden_XLD.index_select(0, real_M).float()
    codes_ML = codes_BHL.flatten(0, 1)[real_M]
    head = model.head_rows().float()
    losses = [
        cross_entropy(hidden_MLD[:, level] @ head[start : start + size].T, codes_ML[:, level])
        for level, (start, size) in enumerate(
            zip(starts_L.tolist(), tokens.codebook_sizes, strict=True)
        )
    ]
    return torch.stack(losses)


def rate_at(progress: float, warmup: float) -> float:
    """Return the learning rate at ``progress`` in [0, 1), as a share of the peak.

    Linear rise over ``warmup``, then a cosine down to a hundredth of the peak.
    """
    if progress < warmup:
        return max(progress, 1e-3) / warmup
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _decay_groups(parameters: dict[str, Any], weight_decay: float) -> list[dict[str, Any]]:
    """Return optimiser groups: matrices decay, vectors and token rows do not."""
    token_rows = ("embed", "lm_head", "trainable_tokens", "wte")
    is_decayed = {
        name: value.ndim > 1 and not any(part in name for part in token_rows)
        for name, value in parameters.items()
    }
    return [
        {
            "params": [value for name, value in parameters.items() if is_decayed[name] == flag],
            "weight_decay": weight_decay if flag else 0.0,
        }
        for flag in (True, False)
    ]
