"""From the recipe's word to the architecture."""

from __future__ import annotations

from torch import Tensor

from prerank.ranking.config import TrainConfig
from prerank.ranking.context import ScoringContext
from prerank.ranking.two_tower import TwoTower


def build_model(
    config: TrainConfig,
    context: ScoringContext,
    user_rows_U: Tensor,
    item_rows_I: Tensor,
    click_rate: float,
) -> TwoTower:
    """Return the untrained model that ``config.model`` names.

    Args:
        config: sizes and switches.
        context: the features, content vectors and histories it reads.
        user_rows_U, item_rows_I: how many training rows each user and item has.
        click_rate: in (0, 1), where the bias starts.
    """
    return TwoTower(config, context, user_rows_U, item_rows_I, click_rate)
