"""train: clicks and pseudo-labels -> PreRanker. One loop for every label source.

    min_f  L_al(D_e) + lambda * L_pl(D_u)        (method.md sections 1 and 7, S)

Each step takes the next exposed rows and, beside them, the next pseudo-labeled ones, so that every
method sees the same number of exposed rows and of steps. Same seed, same bytes, given the same
machine, torch and number of threads.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prerank import seeds
from prerank.artifacts import Dataset, ItemEmbeddings, PseudoLabels, require
from prerank.devices import resolve_device
from prerank.progress import log, track
from prerank.ranking.config import TrainConfig
from prerank.ranking.context import Histories, ScoringContext
from prerank.ranking.losses import actual_loss, pseudo_loss
from prerank.ranking.pre_ranker import PreRanker, schema_of
from prerank.ranking.rows import Draw, Rows, exposed_rows, pseudo_rows
from prerank.ranking.two_tower import TwoTower
from prerank.ranking.validation import quality, selection, validation_rows


def train(
    dataset: Dataset,
    embeddings: ItemEmbeddings,
    labels: PseudoLabels | None,
    config: TrainConfig,
    seed: int,
) -> PreRanker:
    """Train a pre-ranker on clicks and, where ``labels`` are given, on pseudo-labels.

    Without labels, or with ``pseudo_weight`` 0, this is the exposed-only baseline, byte for byte.
    The weights of the best validated epoch are kept; where nothing can be validated, all epochs
    run and the last weights stay.

    Raises:
        DataError: no exposed training row with a known click, or inputs that do not fit.
        ConfigError: unknown device or validation pool.
    """
    with _torch_state(config.threads, seeds.derive(seed, "train", "torch"), config.device):
        return _Training(dataset, embeddings, labels, config, seed).run()


@contextmanager
def _torch_state(threads: int, seed: int, device: str) -> Iterator[None]:
    """Set torch's threads and random state for a while, then put both back."""
    before = torch.get_num_threads()
    kind = resolve_device(device)
    devices = [torch.cuda.current_device()] if kind.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        torch.set_num_threads(threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class _Training:
    """The state of one training run."""

    def __init__(
        self,
        dataset: Dataset,
        embeddings: ItemEmbeddings,
        labels: PseudoLabels | None,
        config: TrainConfig,
        seed: int,
    ) -> None:
        self.config, self.device = config, resolve_device(config.device)
        self.context = ScoringContext.of(dataset, embeddings, config)
        self.schema = schema_of(dataset, embeddings)
        self.exposed = exposed_rows(dataset, self.context, self.device)
        require(
            len(self.exposed) > 0,
            "there is nothing to learn from",
            where="exposures",
            must="at least one training row with a known click",
        )
        self.pseudo = self._pseudo_rows(labels)
        self.draw_exposed = Draw(len(self.exposed), seeds.rng(seed, "train", "exposed"))
        self.validation = validation_rows(dataset, config.validation)
        self.histories = Histories(self.context, config.max_history, self.device)
        # Laplace's rule keeps the starting bias finite where every click is equal.
        clicks, shown = float(self.exposed.target.sum()), len(self.exposed)
        self.model = TwoTower(
            config,
            self.context,
            self._count("user", len(dataset.users)),
            self._count("item", len(dataset.items)),
            click_rate=(clicks + 1) / (shown + 2),
        ).to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.draw_pseudo = None
        if self.pseudo is not None:
            self.draw_pseudo = Draw(len(self.pseudo), seeds.rng(seed, "train", "pseudo"))
        self.records: list[dict[str, Any]] = []

    def _count(self, column: str, size: int) -> Tensor:
        """Return (size,) int64: the training rows of each user or item."""
        tables = [self.exposed] if self.pseudo is None else [self.exposed, self.pseudo]
        index = torch.cat([getattr(rows, column) for rows in tables]).cpu()
        return torch.bincount(index, minlength=size)

    def _pseudo_rows(self, labels: PseudoLabels | None) -> Rows | None:
        if labels is None or self.config.pseudo_weight == 0:
            return None
        for name, index, size in (
            ("user", labels.user, len(self.context.users)),
            ("item", labels.item, len(self.context.items)),
        ):
            inside = not len(index) or (index.min() >= 0 and index.max() < size)
            require(inside, f"{name} index out of range", where="pseudo-labels")
        rows = pseudo_rows(labels, self.context, self.device)
        return rows if len(rows) else None

    def run(self) -> PreRanker:
        """Train, keep the best epoch, and return it."""
        best, best_weights, since = -np.inf, None, 0
        for epoch in track(range(self.config.epochs), "train"):
            record = {"epoch": epoch, **self._epoch(), **self._validate()}
            self.records.append(record)
            value = selection(record)
            if value is None:
                continue
            if value > best:
                best, since = value, 0
                weights = self.model.state_dict().items()
                best_weights = {name: tensor.clone() for name, tensor in weights}
            else:
                since += 1
            if since >= self.config.patience > 0:
                break
        if best_weights is None:
            log("train: nothing to validate on, the last epoch is kept")
        else:
            self.model.load_state_dict(best_weights)
        return self._ranker()

    def _ranker(self) -> PreRanker:
        return PreRanker(self.model, self.context, self.config, self.schema, self.records)

    def _epoch(self) -> dict[str, float]:
        """Make one pass over the exposed rows; return mean losses and rows a second."""
        started, size, shown = time.monotonic(), self.config.batch_size, len(self.exposed)
        self.model.train()
        losses, rows = [], 0
        for start in range(0, shown, size):
            n_exposed = min(size, shown - start)
            batch, n_exposed = self._batch(n_exposed)
            losses.append(self._step(batch, n_exposed))
            rows += len(batch)
        loss_al, loss_pl = torch.stack(losses).mean(0).tolist()
        seconds = time.monotonic() - started
        return {"loss_al": loss_al, "loss_pl": loss_pl, "rows_per_second": rows / seconds}

    def _batch(self, n_exposed: int) -> tuple[Rows, int]:
        """Return the next exposed rows, followed by the pseudo-labeled ones of the step."""
        batch = self.exposed.take(self.draw_exposed.take(n_exposed).to(self.device))
        if self.pseudo is None or self.draw_pseudo is None:
            return batch, n_exposed
        n_pseudo = max(1, round(n_exposed * self.config.unexposed_ratio))
        pseudo = self.pseudo.take(self.draw_pseudo.take(n_pseudo).to(self.device))
        return batch.joined(pseudo), n_exposed

    def _step(self, batch: Rows, n_exposed: int) -> Tensor:
        """Take one optimiser step; return (2,): L_al and L_pl before it."""
        item_T, offsets_B1 = self.histories.ragged(batch.user, batch.end, batch.left_out)
        logit_B = self.model(batch.user, batch.item, item_T, offsets_B1)
        loss_al = actual_loss(logit_B[:n_exposed], batch.target[:n_exposed])
        loss_pl = torch.zeros_like(loss_al)
        if n_exposed < len(batch):
            unexposed = slice(n_exposed, None)
            loss_pl = pseudo_loss(
                logit_B[unexposed], batch.target[unexposed], batch.weight[unexposed]
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss = loss_al + self.config.pseudo_weight * loss_pl
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return torch.stack([loss_al.detach(), loss_pl.detach()])

    def _validate(self) -> dict[str, float | None]:
        rows = self.validation
        return quality(rows, self._ranker().score_pairs(rows.user, rows.item, rows.time))
