"""train: clicks and pseudo-labels -> PreRanker. One loop for every label source and objective.

    min_f  L_al(D_e) + lambda * L_pl(D_u)        (method.md sections 1 and 7, S)

Each step takes the next exposed rows and, beside them, the next pseudo-labeled ones, so that every
method sees the same number of exposed rows and of steps. What a step minimises is an `Objective`.
Same seed, same bytes, given the same machine, torch and number of threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prerank import seeds
from prerank.artifacts import UNLABELED, Dataset, ItemEmbeddings, PseudoLabels, require
from prerank.devices import resolve_device, torch_seed
from prerank.errors import DivergedError
from prerank.group import Group
from prerank.progress import log, track
from prerank.ranking.cold import Cold
from prerank.ranking.config import TrainConfig
from prerank.ranking.context import Histories, ScoringContext, as_read
from prerank.ranking.model import arithmetic, build_model, require_states
from prerank.ranking.objectives.base import Batch, LossParts, Part, Setup, Teacher
from prerank.ranking.objectives.build import objective_class
from prerank.ranking.objectives.in_batch import BatchSoftmax
from prerank.ranking.optimizer import Optimizer
from prerank.ranking.pre_ranker import PreRanker, schema_of
from prerank.ranking.rows import Draw, Drawn, Groups, Rows, exposed_rows, pseudo_rows
from prerank.ranking.state import can_restore, restore_state, store_state
from prerank.ranking.validation import quality, selection, validation_rows

OnEpoch = Callable[[Mapping[str, float | None]], None]
GATE_ROWS = 50_000  # exposed rows over which the importance of a field is averaged


def train(
    dataset: Dataset,
    embeddings: ItemEmbeddings,
    labels: PseudoLabels | None,
    config: TrainConfig,
    seed: int,
    teacher: Teacher | None = None,
    on_epoch: OnEpoch | None = None,
    work: Path | None = None,
) -> PreRanker:
    """Train a pre-ranker on clicks and, where ``labels`` are given, on pseudo-labels.

    Under the pointwise objective, without labels or with ``pseudo_weight`` 0, this is the
    exposed-only baseline, byte for byte. The weights of the best validated epoch are kept; where
    nothing can be validated, all epochs run and the last weights stay.

    Args:
        dataset: logs and histories.
        embeddings: the frozen semantic space.
        labels: of unexposed pairs.
        config: of model and training.
        seed: of weights, dropout and the order of rows.
        teacher: scores exposed rows, for objectives that distil.
        on_epoch: told each epoch's record as it ends: its number, losses and what was validated;
            by then the epoch's state is in ``work``.
        work: a folder that survives a kill, for these arguments only: holds the state after the
            last epoch, from which training goes on to the same result. Not used by objectives
            that train more than the model, nor where fields are chosen first.

    Raises:
        DataError: no exposed training row with a known click, or inputs that do not fit.
        ConfigError: unknown device or validation pool, or an objective that lacks its inputs.
    """

    def run(config: TrainConfig, on_epoch: OnEpoch | None) -> PreRanker:
        with _torch_state(config.threads, seeds.derive(seed, "train", "torch"), config.device):
            training = Training(dataset, embeddings, labels, config, seed, teacher)
            return training.run(on_epoch, None if chooses else work)

    chooses = config.model == "cold" and config.top_features and not config.kept_features
    ranker = run(config, None if chooses else on_epoch)
    if chooses:
        weight = ranker.importance
        kept = sorted(weight, key=lambda name: -weight[name])[: config.top_features]
        log(f"train: fields kept: {', '.join(kept)}")
        ranker = run(config.model_copy(update={"kept_features": tuple(sorted(kept))}), on_epoch)
    return ranker


@contextmanager
def _torch_state(threads: int, seed: int, device: str) -> Iterator[None]:
    """Set torch's threads and random state for a while, then put both back."""
    before = torch.get_num_threads()
    with torch_seed(seed, resolve_device(device)):
        torch.set_num_threads(threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class Training:
    """The state of one training run; what changes from epoch to epoch, `state` writes and reads."""

    def __init__(
        self,
        dataset: Dataset,
        embeddings: ItemEmbeddings,
        labels: PseudoLabels | None,
        config: TrainConfig,
        seed: int,
        teacher: Teacher | None,
    ) -> None:
        self.config, self.device = config, resolve_device(config.device)
        dataset = as_read(dataset, config)
        self.context = ScoringContext.of(dataset, embeddings, config)
        self.schema = schema_of(dataset, embeddings)
        self.exposed = exposed_rows(dataset, self.context, self.device, on_disk=config.rows_on_disk)
        require(
            len(self.exposed) > 0,
            "there is nothing to learn from",
            where="exposures",
            must="at least one training row with a known click",
        )
        kind = objective_class(config.objective)
        weighs = config.pseudo_weight > 0 or kind.fixed_weight
        self.unexposed = self.labeled = None
        if labels is not None:
            rows = self._unexposed_rows(labels)
            self.unexposed = rows if kind.reads_unexposed and weighs and len(rows) else None
            self.labeled = None if labels.source == UNLABELED else self.unexposed
        self.draw_exposed = self._draw(self.exposed, "exposed", seed)
        self.validation = validation_rows(dataset, config.validation)
        self.histories = Histories(self.context, config.max_history, self.device)
        # Laplace's rule keeps the starting bias finite where every click is equal.
        clicks, shown = float(self.exposed.target.sum()), len(self.exposed)
        self.model = build_model(
            config,
            self.context,
            self._count("user", len(dataset.users)),
            self._count("item", len(dataset.items)),
            click_rate=(clicks + 1) / (shown + 2),
        ).to(self.device)
        require_states(self.model)
        setup = Setup(
            dataset=dataset,
            config=config,
            seed=seed,
            model=self.model,
            histories=self.histories,
            exposed=self.exposed,
            unexposed=self.unexposed,
            pairs=labels,
            teacher=teacher,
            device=self.device,
        )
        self.objective = kind.of(setup)
        self.softmax = BatchSoftmax.of(setup) if config.in_batch_weight else None
        self.group = Group.current()
        self.optimizer = Optimizer(self.model, self.objective.parameters(), config, self.group)
        self.draw_unexposed: Draw | None = None
        self.no_rows: Part | None = None  # what stands beside the exposed rows where nothing does
        if self.unexposed is not None:
            self.draw_unexposed = self._draw(self.unexposed, "pseudo", seed)
        self.records: list[dict[str, Any]] = []
        self.best, self.since = float("-inf"), 0
        self.best_weights: dict[str, Tensor] | None = None
        self.scorer = self._ranker()
        held = self.validation
        self.plan = self.scorer.plan(held.user, held.item, held.time)

    def _draw(self, rows: Rows, name: str, seed: int) -> Draw:
        groups = Groups.of(rows, self.config.group_rows, seeds.rng(seed, "train", name, "groups"))
        return Draw(rows, seeds.rng(seed, "train", name), self.device, groups)

    def _count(self, column: str, size: int) -> Tensor:
        """Return (size,) int64: the training rows of each user or item that have a label."""
        tables = [rows for rows in (self.exposed, self.labeled) if rows is not None]
        counts = [torch.bincount(getattr(rows, column).cpu(), minlength=size) for rows in tables]
        return torch.stack(counts).sum(0)

    def _unexposed_rows(self, labels: PseudoLabels) -> Rows:
        for name, index, size in (
            ("user", labels.user, len(self.context.users)),
            ("item", labels.item, len(self.context.items)),
        ):
            inside = not len(index) or (index.min() >= 0 and index.max() < size)
            require(inside, f"{name} index out of range", where="pseudo-labels")
        return pseudo_rows(labels, self.context, self.device)

    def run(self, on_epoch: OnEpoch | None = None, work: Path | None = None) -> PreRanker:
        """Train, keep the best epoch, and return it."""
        warmup = self.objective.warmup_epochs
        work = work if can_restore(self.objective) else None
        if work is not None:
            restore_state(self, work)
        for epoch in track(range(len(self.records), warmup + self.config.epochs), "epochs"):
            if self.since >= self.config.patience > 0:
                break
            record = {"epoch": epoch, **self._epoch(epoch), **self._validate()}
            if not _finite(record):
                self._stop_diverged(epoch)
                break
            self.records.append(record)
            if epoch >= warmup:
                self._keep_best(selection(record))
            if work is not None:
                store_state(self, work)
            if on_epoch is not None:
                on_epoch(record)
        if self.best_weights is None:
            if not all(bool(part.isfinite().all()) for part in self.model.parameters()):
                self._stop_diverged(len(self.records))
            log("train: nothing to validate on, the last epoch is kept")
        else:
            self.model.load_state_dict(self.best_weights)
        return self._ranker(self._importance())

    def _stop_diverged(self, epoch: int) -> None:
        """Fall back on the best epoch before ``epoch``; raise if there is none."""
        if self.best_weights is None:
            raise DivergedError.of(epoch + 1, "train.learning_rate", self.config.learning_rate)
        log(f"train: the loss of epoch {epoch + 1} is not finite, the best one before it is kept")

    def _keep_best(self, value: float | None) -> None:
        if value is None:
            return
        if value > self.best:
            self.best, self.since = value, 0
            weights = self.model.state_dict().items()
            self.best_weights = {name: tensor.clone() for name, tensor in weights}
        else:
            self.since += 1

    def _ranker(self, importance: Mapping[str, float] | None = None) -> PreRanker:
        return PreRanker(
            self.model, self.context, self.config, self.schema, self.records, importance or {}
        )

    @torch.no_grad()
    def _importance(self) -> dict[str, float]:
        """Return the mean gate of each field over exposed rows, for a model that has gates."""
        if not isinstance(self.model, Cold):
            return {}
        self.model.eval()
        first = torch.arange(min(len(self.exposed), GATE_ROWS))
        rows = self.exposed.take(first.to(self.exposed.user.device)).to(self.device)
        means = []
        for block in torch.split(torch.arange(len(rows)).to(self.device), self.config.batch_size):
            part = rows.take(block)
            history = self.histories.ragged(part.user, part.end, part.left_out)
            means.append(self.model.gate_values(part.user, part.item, *history).sum(0))
        mean_F = torch.stack(means).sum(0) / len(rows)
        return dict(zip(self.model.names, mean_F.tolist(), strict=True))

    def _epoch(self, epoch: int) -> dict[str, float]:
        """Make one pass over the exposed rows; return mean losses and rows a second."""
        started, size, shown = time.monotonic(), self.config.batch_size, len(self.exposed)
        self.model.train()
        steps, rows = [], 0
        for start in range(0, shown, size):
            parts, n_rows = self._step(min(size, shown - start), epoch)
            steps.append(parts)
            rows += n_rows
        means = {
            "loss_al": _mean([parts.al for parts in steps]),
            "loss_pl": _mean([parts.pl for parts in steps if parts.pl is not None]),
        }
        others = [parts.other for parts in steps if parts.other is not None]
        if others:
            means["loss_other"] = _mean(others)
        return {**means, "rows_per_second": rows / (time.monotonic() - started)}

    def _batch(self, n_exposed: int, epoch: int, reading: ExitStack) -> Batch:
        """Run the model on the next exposed rows and, behind them, on the next unexposed ones."""
        shown = self.draw_exposed.take(n_exposed)
        if self.draw_unexposed is None or not self.objective.draws(epoch):
            part = Part(shown.number, shown.rows, *self._outputs(shown, reading))
            if self.no_rows is None:
                few = part.logit[:0].detach(), part.hidden[:0].detach()
                self.no_rows = Part(part.index[:0], part.rows.first(0), *few)
            return Batch(part, self.no_rows, epoch)
        n_unexposed = max(1, round(n_exposed * self.config.unexposed_ratio))
        beside = self.draw_unexposed.take(n_unexposed)
        logit_B, hidden_BD = self._outputs(shown.followed(beside), reading)
        sizes = [n_exposed, n_unexposed]
        logit_N, logit_M = torch.split(logit_B, sizes)
        hidden_ND, hidden_MD = torch.split(hidden_BD, sizes)
        return Batch(
            Part(shown.number, shown.rows, logit_N, hidden_ND),
            Part(beside.number, beside.rows, logit_M, hidden_MD),
            epoch,
        )

    def _outputs(self, drawn: Drawn, reading: ExitStack) -> tuple[Tensor, Tensor]:
        """Run the model: (B,) logits and (B, D) hidden vectors, over all processes."""
        _, rows, states, users = drawn
        n_rows, item_b, own, own_states = len(rows), rows.item, users, states
        if self.group.size > 1:
            place = self.group.share(n_rows, self.device)
            item_b, which = item_b.index_select(0, place), place
            if states is not None:
                own_states, which = states.of_rows(place)
            own = users.take(which)
            self.model.inputs.share_dropout((which, len(users)), (place, n_rows))
        item_T, offsets_S1 = self.histories.ragged(own.user, own.end, own.left_out)
        touched = item_T
        if self.group.size > 1 and self.optimizer.items is not None:
            # Every process must focus on the same rows, those of the whole batch.
            touched = self.histories.ragged(users.user, users.end, users.left_out)[0]
        reading.enter_context(self.optimizer.reading(users.user, rows.item, touched))
        with arithmetic(self.config, self.device):
            found = self.model.outputs(own.user, item_b, item_T, offsets_S1, states=own_states)
        logit_B, hidden_BD = (self.group.gathered(part.float(), n_rows) for part in found)
        return logit_B, hidden_BD

    def _step(self, n_exposed: int, epoch: int) -> tuple[LossParts, int]:
        """Take one optimiser step; return the parts of the loss before it, and its rows."""
        # An objective may run the model on the step's rows once more, so it reads the same tables.
        with ExitStack() as reading:
            batch = self._batch(n_exposed, epoch, reading)
            parts = self.objective.loss(batch)
            if self.softmax is not None:
                softmax = self.softmax.loss(batch.exposed)
                parts = parts.plus(self.config.in_batch_weight * softmax)
        loss = parts.al
        if parts.pl is not None:
            loss = loss + self.config.pseudo_weight * parts.pl
        if parts.other is not None:
            loss = loss + parts.other
        self.optimizer.step(loss)
        self.objective.after_step()
        return parts.detached(), len(batch.exposed) + len(batch.unexposed)

    def _validate(self) -> dict[str, float | None]:
        self.model.eval()
        self.scorer.forget_items()
        return quality(self.validation, self.scorer.score_plan(self.plan))


def _finite(record: Mapping[str, Any]) -> bool:
    """Say whether the losses of an epoch are finite, those that it has."""
    found = [value for name, value in record.items() if "loss" in name and value is not None]
    return all(math.isfinite(value) for value in found)


def _mean(losses: list[Tensor]) -> float:
    """Return the mean of scalars; 0 of none."""
    return float(torch.stack(losses).mean()) if losses else 0.0
