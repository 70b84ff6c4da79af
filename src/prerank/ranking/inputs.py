"""What pre-rankers read, as fields: ids, features, content and history.

A field is one named vector a row, such as a category's embedding. Models differ in what they make
of the fields.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from prerank.errors import ConfigError
from prerank.ranking.config import TrainConfig
from prerank.ranking.context import ScoringContext
from prerank.ranking.features import FeatureTable
from prerank.ranking.pooling import ragged_mean

CATEGORY_DIM = 16
ID_SCALE = 0.01  # standard deviation of new id embeddings: an item never shown adds almost nothing

Widths = dict[str, int]
"""Field name -> its number of columns, in the order of the fields."""


class FeatureFields(nn.Module):
    """Looks up a feature table.

    Args:
        table: the features.
        rows_R: (R,) training rows of each user or item.
    """

    codes: Tensor
    numeric: Tensor

    def __init__(self, table: FeatureTable, rows_R: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", torch.from_numpy(table.codes), persistent=False)
        self.register_buffer("numeric", torch.from_numpy(table.numeric), persistent=False)
        self.embedding = nn.Embedding(max(table.n_codes, 1), CATEGORY_DIM)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self._forget_unseen(rows_R)
        self.widths: Widths = dict.fromkeys(table.names, CATEGORY_DIM)
        if table.numeric.shape[1]:
            self.widths["numbers"] = table.numeric.shape[1]

    def _forget_unseen(self, rows_R: Tensor) -> None:
        """Zero what no training row will ever move: an unseen value says nothing."""
        codes_RF = self.codes[:-1].long()
        seen = torch.zeros(len(self.embedding.weight), dtype=torch.bool)
        seen[codes_RF[rows_R > 0].flatten()] = True
        with torch.no_grad():
            self.embedding.weight[~seen] = 0

    def forward(self, index_B: Tensor) -> list[Tensor]:
        """Return the fields, each (B, width)."""
        embedded_BFD = self.embedding(self.codes.index_select(0, index_B))
        fields = list(embedded_BFD.unbind(1))
        if self.numeric.shape[1]:
            fields.append(self.numeric.index_select(0, index_B))
        return fields


class Ids(nn.Module):
    """An embedding for each id that has rows enough to learn one, and one for all others.

    Few rows teach an id little but their noise, and that hurts the long tail most: rare ids are
    better described by what they share, their content and features.
    """

    own: Tensor

    def __init__(self, rows: Tensor, config: TrainConfig) -> None:
        super().__init__()
        self.unknown = len(rows)
        index = torch.arange(self.unknown).masked_fill(rows < config.min_id_rows, self.unknown)
        # Unlike the context it depends on the training rows, so it is saved with the weights.
        self.register_buffer("own", torch.cat([index, index.new_tensor([self.unknown])]).int())
        self.embedding = nn.Embedding(self.unknown + 1, config.embedding_dim)
        nn.init.normal_(self.embedding.weight, std=ID_SCALE)
        self.dropout = config.id_dropout

    def forward(self, index_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, D) embeddings and (B,) the table rows they come from."""
        row_B = self.own.index_select(0, index_B)
        if self.training and self.dropout > 0:
            drop_B = torch.rand(len(row_B), device=row_B.device) < self.dropout
            row_B = row_B.masked_fill(drop_B, self.unknown)
        return self.embedding(row_B), row_B

    def mean(self, item_T: Tensor, offsets_B1: Tensor) -> Tensor:
        """Return (B, D): the mean embedding of ragged histories."""
        return ragged_mean(self.embedding.weight, self.own.index_select(0, item_T), offsets_B1)


class Inputs(nn.Module):
    """The fields of users and items, and the item's bias.

    Args:
        config: sizes and switches.
        context: the features, content vectors and histories.
        user_rows_U, item_rows_I: how many training rows each user and item has.
        click_rate: in (0, 1), where the bias starts.

    Attributes:
        user_widths, item_widths: the fields of each side.

    Letters: B rows, D embedding_dim, E content dims, T history items of all rows end to end.
    """

    content: Tensor

    def __init__(
        self,
        config: TrainConfig,
        context: ScoringContext,
        user_rows_U: Tensor,
        item_rows_I: Tensor,
        click_rate: float,
    ) -> None:
        super().__init__()
        dim, content_dim = config.embedding_dim, context.content.shape[1]
        # Unit rows have coordinates of about 1 / sqrt(E); bring them to about 1.
        content = torch.from_numpy(context.content) * math.sqrt(max(content_dim, 1))
        self.register_buffer("content", content, persistent=False)
        self.user_features = FeatureFields(context.users, user_rows_U)
        self.item_features = FeatureFields(context.items, item_rows_I)
        self.user_id = Ids(user_rows_U, config) if config.use_user_id else None
        self.item_id = Ids(item_rows_I, config) if config.use_item_id else None
        self.item_bias = nn.Parameter(torch.zeros(len(context.items) + 1))
        self.bias = nn.Parameter(torch.tensor(math.log(click_rate / (1 - click_rate))))
        self.item_content = nn.Linear(content_dim, dim) if content_dim else None
        reads_content = bool(content_dim) and config.use_history
        self.history_content = nn.Linear(content_dim, dim) if reads_content else None
        self.history_id = config.use_history and config.use_item_id
        learned = {
            "user id": self.user_id is not None,
            "history ids": self.history_id,
            "history content": reads_content,
        }
        self.user_widths: Widths = self.user_features.widths | _sized(learned, dim)
        learned = {"item id": self.item_id is not None, "content": bool(content_dim)}
        self.item_widths: Widths = self.item_features.widths | _sized(learned, dim)
        for side, widths in (("user", self.user_widths), ("item", self.item_widths)):
            if not widths:
                raise ConfigError(
                    f"the {side} tower has nothing to read",
                    where="train",
                    hint="turn on one of use_user_id, use_item_id, use_content, use_history",
                )

    def user(self, user_B: Tensor, item_T: Tensor, offsets_B1: Tensor) -> list[Tensor]:
        """Return the user's fields, each (B, width).

        Args:
            user_B: (B,) int64; U = unknown.
            item_T: (T,) int32 items of all histories end to end.
            offsets_B1: (B + 1,) int32 borders of the histories.
        """
        id_mean_BD = content_mean_BE = None
        if self.history_id and self.item_id is not None:
            id_mean_BD = self.item_id.mean(item_T, offsets_B1)
        if self.history_content is not None:
            content_mean_BE = ragged_mean(self.content, item_T, offsets_B1)
        fields: list[Tensor] = self.user_features(user_B)
        if self.user_id is not None:
            fields.append(self.user_id(user_B)[0])
        if id_mean_BD is not None:
            fields.append(id_mean_BD)
        if self.history_content is not None and content_mean_BE is not None:
            # The mean of projections is the projection of the mean: project once a row.
            fields.append(self.history_content(content_mean_BE))
        return fields

    def item(self, item_B: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the item's fields, each (B, width), and its bias (B,); I = unknown."""
        fields, bias_B = self.item_features(item_B), self.bias.expand(len(item_B))
        if self.item_id is not None:
            id_BD, row_B = self.item_id(item_B)
            fields.append(id_BD)
            bias_B = bias_B + self.item_bias.index_select(0, row_B)
        if self.item_content is not None:
            fields.append(self.item_content(self.content.index_select(0, item_B)))
        return fields, bias_B


def _sized(switches: dict[str, bool], dim: int) -> Widths:
    return {name: dim for name, on in switches.items() if on}


def layers(width: int, config: TrainConfig) -> tuple[list[nn.Module], int]:
    """Return the hidden layers of ``config`` on ``width`` inputs, and the last one's width."""
    found: list[nn.Module] = []
    for size in config.hidden:
        found += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(config.dropout)]
        width = size
    return found, width
