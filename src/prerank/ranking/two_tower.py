"""The two-tower pre-ranker: one vector a user, one vector a candidate, their dot product.

Light enough for thousands of candidates: item vectors are computed ahead, a request costs one
user vector and one matrix product (method.md section 7, S: light and plug-in; the layers are C).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from prerank.errors import ConfigError
from prerank.ranking.config import TrainConfig
from prerank.ranking.context import FeatureTable, ScoringContext
from prerank.ranking.pooling import ragged_mean

CATEGORY_DIM = 16
ID_SCALE = 0.01  # standard deviation of new id embeddings: an item never shown adds almost nothing


class _Features(nn.Module):
    """Looks up a feature table: (B,) index -> (B, width)."""

    codes: Tensor
    numeric: Tensor

    def __init__(self, table: FeatureTable) -> None:
        super().__init__()
        self.register_buffer("codes", torch.from_numpy(table.codes), persistent=False)
        self.register_buffer("numeric", torch.from_numpy(table.numeric), persistent=False)
        self.embedding = nn.Embedding(max(table.n_codes, 1), CATEGORY_DIM)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.width = table.codes.shape[1] * CATEGORY_DIM + table.numeric.shape[1]

    def forward(self, index_B: Tensor) -> Tensor:
        embedded_BFD = self.embedding(self.codes.index_select(0, index_B))
        return torch.cat([embedded_BFD.flatten(1), self.numeric.index_select(0, index_B)], dim=1)


class _Ids(nn.Module):
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


def _tower(side: str, width: int, config: TrainConfig) -> nn.Sequential:
    if width == 0:
        raise ConfigError(
            f"the {side} tower has nothing to read",
            where="train",
            hint="turn on one of use_user_id, use_item_id, use_content, use_history",
        )
    layers: list[nn.Module] = []
    for size in config.hidden:
        layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(config.dropout)]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, config.embedding_dim))


class TwoTower(nn.Module):
    """User tower and item tower over ids, content, history and side features.

    Args:
        config: sizes and switches.
        context: the features, content vectors and histories it reads.
        user_rows_U, item_rows_I: how many training rows each user and item has.
        click_rate: in (0, 1), where the bias starts.

    The state dict holds trained weights only; feature tables and content vectors are buffers
    taken from the `ScoringContext`.

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
        self.user_features = _Features(context.users)
        self.item_features = _Features(context.items)
        self.user_id = _Ids(user_rows_U, config) if config.use_user_id else None
        self.item_id = _Ids(item_rows_I, config) if config.use_item_id else None
        self.item_bias = nn.Parameter(torch.zeros(len(context.items) + 1))
        self.bias = nn.Parameter(torch.tensor(math.log(click_rate / (1 - click_rate))))
        self.item_content = nn.Linear(content_dim, dim) if content_dim else None
        reads_content = bool(content_dim) and config.use_history
        self.history_content = nn.Linear(content_dim, dim) if reads_content else None
        self.history_id = config.use_history and config.use_item_id
        user_parts = (self.user_id is not None, self.history_id, reads_content)
        item_parts = (self.item_id is not None, bool(content_dim))
        self.user_tower = _tower("user", sum(user_parts) * dim + self.user_features.width, config)
        self.item_tower = _tower("item", sum(item_parts) * dim + self.item_features.width, config)

    def user_vectors(self, user_B: Tensor, item_T: Tensor, offsets_B1: Tensor) -> Tensor:
        """Return (B, D) user vectors.

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
        return self.user_vectors_of_means(user_B, id_mean_BD, content_mean_BE)

    def user_vectors_of_means(
        self, user_B: Tensor, id_mean_BD: Tensor | None, content_mean_BE: Tensor | None
    ) -> Tensor:
        """Return (B, D) user vectors from histories already averaged (None: not read)."""
        parts = [self.user_features(user_B)]
        if self.user_id is not None:
            parts.append(self.user_id(user_B)[0])
        if id_mean_BD is not None:
            parts.append(id_mean_BD)
        if self.history_content is not None and content_mean_BE is not None:
            # The mean of projections is the projection of the mean: project once a row.
            parts.append(self.history_content(content_mean_BE))
        vectors_BD: Tensor = self.user_tower(torch.cat(parts, dim=1))
        return vectors_BD

    def item_vectors(self, item_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, D) item vectors and (B,) item biases; I = unknown."""
        parts, bias_B = [self.item_features(item_B)], self.bias.expand(len(item_B))
        if self.item_id is not None:
            id_BD, row_B = self.item_id(item_B)
            parts.append(id_BD)
            bias_B = bias_B + self.item_bias.index_select(0, row_B)
        if self.item_content is not None:
            parts.append(self.item_content(self.content.index_select(0, item_B)))
        return self.item_tower(torch.cat(parts, dim=1)), bias_B

    def outputs(
        self, user_B: Tensor, item_B: Tensor, item_T: Tensor, offsets_B1: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return (B,) logits of pairs and (B, D), the product of both vectors behind each."""
        item_BD, bias_B = self.item_vectors(item_B)
        hidden_BD = self.user_vectors(user_B, item_T, offsets_B1) * item_BD
        return hidden_BD.sum(1) + bias_B, hidden_BD

    def forward(self, user_B: Tensor, item_B: Tensor, item_T: Tensor, offsets_B1: Tensor) -> Tensor:
        """Return (B,) logits of user-item pairs."""
        return self.outputs(user_B, item_B, item_T, offsets_B1)[0]
