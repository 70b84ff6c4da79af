"""The seam between the training loop and what it minimises.

The loop draws rows, runs the model, steps the optimiser and stops early, alike for every method.
An `Objective` sees the model's outputs for the rows of a step and returns the parts of the loss.
It may own further parameters (an adversary, a second head, an imputation head, a moving copy):
they are trained beside the model and never saved, so that what is served costs the same.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from prerank.artifacts import (
    TRAIN,
    UNKNOWN_CLICK,
    Dataset,
    FloatArray,
    IntArray,
    PseudoLabels,
    TimeArray,
)
from prerank.errors import ConfigError
from prerank.ranking.config import TrainConfig
from prerank.ranking.context import Histories
from prerank.ranking.model import PreRankerModel, arithmetic
from prerank.ranking.rows import Rows


class Teacher(Protocol):
    """A trained model that scores any pair list."""

    def score_pairs(self, user: IntArray, item: IntArray, time: TimeArray | None) -> FloatArray:
        """Return the logits of pairs, (N,) float32."""
        ...


@dataclass(frozen=True, eq=False)
class Part:
    """The exposed or the unexposed rows of a step, with the model's outputs.

    Attributes:
        index: (N,) int64 places of the rows in `Setup.exposed` or `Setup.unexposed`.
        rows: the rows themselves, N of them; may be none.
        logit: (N,) float32.
        hidden: (N, D) float32, the last hidden vector behind each logit.
    """

    index: Tensor
    rows: Rows
    logit: Tensor
    hidden: Tensor

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class Batch:
    """One step: exposed rows, the unexposed ones beside them, and the epoch, from 0."""

    exposed: Part
    unexposed: Part
    epoch: int


@dataclass(frozen=True, eq=False)
class LossParts:
    """``al + pseudo_weight * pl + other``: what the step descends; scalars.

    Attributes:
        al: of exposed rows.
        pl: of unexposed rows, before lambda; None where none stand beside the exposed ones.
        other: what has a weight of its own already, such as an adversary's loss; None for none.
    """

    al: Tensor
    pl: Tensor | None = None
    other: Tensor | None = None

    def plus(self, more: Tensor) -> LossParts:
        """Return the same with ``more`` (weighted, a scalar) in ``other``."""
        return replace(self, other=more if self.other is None else self.other + more)

    def detached(self) -> LossParts:
        """Return the values alone."""
        pl, other = (None if of is None else of.detach() for of in (self.pl, self.other))
        return LossParts(self.al.detach(), pl, other)


@dataclass(frozen=True, eq=False)
class Setup:
    """What an objective may be made from.

    Attributes:
        dataset, config, seed: of the training.
        model: the student, on ``device``.
        histories: to run the model on other rows than the step's.
        exposed: D_e, all rows.
        unexposed: the drawn part of D_u, all rows; None where nothing is drawn.
        pairs: the pseudo-labels behind ``unexposed``, also those that abstain.
        teacher: None where the method has none.
    """

    dataset: Dataset
    config: TrainConfig
    seed: int
    model: PreRankerModel
    histories: Histories
    exposed: Rows
    unexposed: Rows | None
    pairs: PseudoLabels | None
    teacher: Teacher | None
    device: torch.device

    def exposure_rows(self) -> TimeArray:
        """Return (N,) int64: the row of `Dataset.exposures` behind each row of ``exposed``."""
        table = self.dataset.exposures
        return np.flatnonzero((table.split == TRAIN) & (table.click != UNKNOWN_CLICK))

    def unlabeled(self, objective: str) -> PseudoLabels:
        """Return the unexposed pairs; raise ConfigError where the method has none."""
        if self.pairs is None or not len(self.pairs):
            raise ConfigError(
                f"the objective `{objective}` needs unexposed pairs",
                where="label.source",
                must="`unlabeled`, or any source of pseudo-labels",
                got="none",
            )
        return self.pairs

    def taught(self, objective: str) -> Tensor:
        """Return (N,) float32: the teacher's click probability of each row of ``exposed``."""
        if self.teacher is None:
            raise ConfigError(
                f"the objective `{objective}` needs a teacher",
                where="methods.*.teacher",
                must="ranker or adapted",
                got="none",
            )
        rows, table = self.exposure_rows(), self.dataset.exposures
        logit = self.teacher.score_pairs(table.user[rows], table.item[rows], table.time[rows])
        return torch.from_numpy(logit).to(self.device).sigmoid()

    def outputs(self, model: PreRankerModel, rows: Rows) -> tuple[Tensor, Tensor]:
        """Run ``model`` on ``rows``: (N,) logits and (N, D) hidden vectors."""
        history = self.histories.ragged(rows.user, rows.end, rows.left_out)
        with arithmetic(self.config, self.device):
            logit_N, hidden_ND = model.outputs(rows.user, rows.item, *history)
        return logit_N.float(), hidden_ND.float()

    def hidden_width(self) -> int:
        """Return D of the model's hidden vectors."""
        with torch.no_grad():
            return int(self.outputs(self.model, self.exposed.first(1).to(self.device))[1].shape[1])

    def cross_logits(self, rows: Rows) -> Tensor:
        """Return (N, N) logits: the user and history of row n with the item of row m."""
        history = self.histories.ragged(rows.user, rows.end, rows.left_out)
        with arithmetic(self.config, self.device):
            users = self.model.user_parts(rows.user, *history)
            logit_NN = self.model.combine(users, self.model.item_parts(rows.item))
        return logit_NN.float()


class Objective(Protocol):
    """What a step minimises; the defaults are those of a loss without state of its own.

    Attributes:
        reads_unexposed: False where the steps need no unexposed rows at all: none are drawn.
        fixed_weight: True where lambda has no say: rows are drawn even if it is 0.
        warmup_epochs: further epochs before the recipe's own, never selected by validation.
    """

    reads_unexposed: ClassVar[bool] = True
    fixed_weight: ClassVar[bool] = False
    warmup_epochs: int = 0

    @classmethod
    def of(cls, setup: Setup) -> Self:
        """Make the objective for one training; raise ConfigError where it lacks an input."""
        return cls()

    def loss(self, batch: Batch) -> LossParts:
        """Return the parts of the loss of one step."""
        ...

    def draws(self, epoch: int) -> bool:
        """Say whether the steps of ``epoch`` need unexposed rows."""
        return True

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return further parameters to train beside the model's."""
        return ()

    def after_step(self) -> None:
        """Follow the model after the optimiser's step."""
        return


def twin(model: PreRankerModel) -> PreRankerModel:
    """Return a copy with weights of its own; buffers, which nobody trains, are shared."""
    return copy.deepcopy(model, {id(buffer): buffer for buffer in model.buffers()})
