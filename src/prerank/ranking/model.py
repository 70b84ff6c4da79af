"""The contract of every pre-ranker model, and the choice of one.

A score is made in three steps, cut where a serving system cuts them: what is computed once a
request (`user_parts`), what is computed once an item and cached (`item_parts`), and what remains
for each candidate (`combine`). All three export to ONNX with any number of rows and candidates.

Letters: B rows or requests, C candidates, S states of users (S = B where no two rows share one),
T history items of all rows end to end.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from prerank import plugins
from prerank.errors import ConfigError
from prerank.ranking.config import TrainConfig
from prerank.ranking.context import ScoringContext
from prerank.ranking.inputs import Inputs
from prerank.ranking.pooling import States

Parts = tuple[Tensor, ...]


class PreRankerModel(nn.Module, ABC):
    """A model of the logit of a click.

    The state dict holds trained weights only; feature tables and content vectors are buffers
    taken from the `ScoringContext`.

    Attributes:
        inputs: what the model reads, as fields.
    """

    inputs: Inputs

    @abstractmethod
    def user_parts(self, user_B: Tensor, item_T: Tensor, offsets_B1: Tensor) -> Parts:
        """Return what is computed once a request, each part (B, ...) float32.

        Args:
            user_B: (B,) int64; U = unknown.
            item_T: (T,) int32 items of all histories end to end.
            offsets_B1: (B + 1,) int32; history b is ``item_T[offsets_B1[b]:offsets_B1[b + 1]]``.
        """

    @abstractmethod
    def item_parts(self, item_B: Tensor) -> Parts:
        """Return what is computed once an item and cached, each part (B, ...).

        The last part is (B,): the item's bias.

        Args:
            item_B: (B,) int64; I = unknown.
        """

    @abstractmethod
    def combine(self, user_parts: Parts, item_parts: Parts) -> Tensor:
        """Return (B, C) logits.

        Args:
            user_parts: of B requests, each part (B, ...).
            item_parts: of candidates, each part (B, C, ...), or (C, ...) where all requests have
                the same ones.
        """

    @abstractmethod
    def outputs(
        self,
        user_S: Tensor,
        item_B: Tensor,
        item_T: Tensor,
        offsets_S1: Tensor,
        states: States | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return (B,) logits of pairs and (B, D), the last hidden vector behind each.

        What training differentiates; the logits equal those of `combine`.

        Args:
            user_S: (S,) int64, a user for each state.
            item_B: (B,) int64.
            item_T, offsets_S1: the histories of the states, as in `user_parts`.
            states: which state each row is of; None where every row has its own.
        """

    def forward(self, user_B: Tensor, item_B: Tensor, item_T: Tensor, offsets_B1: Tensor) -> Tensor:
        """Return (B,) logits of pairs."""
        return self.outputs(user_B, item_B, item_T, offsets_B1)[0]


def batched(item_parts: Parts) -> Parts:
    """Return item parts with a batch dimension: (1, C, ...) where all requests share them."""
    if item_parts[-1].dim() > 1:
        return item_parts
    return tuple(part[None] for part in item_parts)


def arithmetic(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """Return what to run a model in while it trains: products in ``config.dtype``."""
    if config.dtype == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def build_model(
    config: TrainConfig,
    context: ScoringContext,
    user_rows_U: Tensor,
    item_rows_I: Tensor,
    click_rate: float,
) -> PreRankerModel:
    """Return the untrained model that ``config.model`` names.

    Args:
        config: sizes and switches.
        context: the features, content vectors and histories it reads.
        user_rows_U, item_rows_I: (U,) and (I,) int64, training rows of each user and item.
        click_rate: in (0, 1), where the bias starts.

    Raises:
        ConfigError: a tower has nothing to read, a field to keep is not there, or a plug-in is not
            there or built something else.
    """
    from prerank.ranking.cold import Cold
    from prerank.ranking.cross import CrossFields
    from prerank.ranking.din import TargetAttention
    from prerank.ranking.int_tower import IntTower
    from prerank.ranking.three_tower import ThreeTower
    from prerank.ranking.two_tower import TwoTower

    inputs = Inputs(config, context, user_rows_U, item_rows_I, click_rate)
    match config.model:
        case "two-tower":
            return TwoTower(config, inputs)
        case "three-tower":
            return ThreeTower(config, inputs, CrossFields(context))
        case "int-tower":
            return IntTower(config, inputs)
        case "cold":
            return Cold(config, inputs, CrossFields(context))
        case "din":
            return TargetAttention(config, inputs)
        case "plugin":
            return _by_plugin(config, inputs, context)


def _by_plugin(config: TrainConfig, inputs: Inputs, context: ScoringContext) -> PreRankerModel:
    model = plugins.find(config.plugin, "train.plugin")(config, inputs, context)
    if not isinstance(model, PreRankerModel):
        raise ConfigError(
            "the plug-in built no pre-ranker",
            where=config.plugin,
            must="a prerank.ranking.model.PreRankerModel",
            got=type(model).__name__,
        )
    return model


def require_states(model: PreRankerModel) -> None:
    """Raise ConfigError where a plug-in's model knows nothing of rows that share a user.

    Scoring does not need it, so a model that was trained before still loads.
    """
    if "states" not in inspect.signature(model.outputs).parameters:
        raise ConfigError(
            "the plug-in's pre-ranker does not take `states`",
            where=f"{type(model).__module__}: {type(model).__name__}.outputs",
            must="outputs(user_S, item_B, item_T, offsets_S1, states=None)",
            hint="rows that share a user share what is computed of it: "
            "prerank.ranking.pooling.spread(value_SD, states) is a row for each of them",
        )
