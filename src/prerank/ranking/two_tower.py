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
        embedded_BFD = self.embedding(self.codes[index_B])
        return torch.cat([embedded_BFD.flatten(1), self.numeric[index_B]], dim=1)


def _id_table(n_known: int, dim: int) -> nn.Embedding:
    """Return a table of ``n_known`` ids and, in the last row, the unknown id."""
    table = nn.Embedding(n_known + 1, dim)
    nn.init.normal_(table.weight, std=ID_SCALE)
    return table


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

    The state dict holds trained weights only; feature tables and content vectors are buffers
    taken from the `ScoringContext`.

    Letters: B rows, D embedding_dim, E content dims, T history items of all rows end to end.
    """

    content: Tensor

    def __init__(self, config: TrainConfig, context: ScoringContext, click_rate: float) -> None:
        super().__init__()
        n_users, n_items = len(context.users), len(context.items)
        dim, content_dim = config.embedding_dim, context.content.shape[1]
        # Unit rows have coordinates of about 1 / sqrt(E); bring them to about 1.
        content = torch.from_numpy(context.content) * math.sqrt(max(content_dim, 1))
        self.register_buffer("content", content, persistent=False)
        self.user_features = _Features(context.users)
        self.item_features = _Features(context.items)
        self.user_id = _id_table(n_users, dim) if config.use_user_id else None
        self.item_id = _id_table(n_items, dim) if config.use_item_id else None
        self.item_bias = nn.Parameter(torch.zeros(n_items + 1))
        self.bias = nn.Parameter(torch.tensor(math.log(click_rate / (1 - click_rate))))
        self.item_content = nn.Linear(content_dim, dim) if content_dim else None
        reads_content = bool(content_dim) and config.use_history
        self.history_content = nn.Linear(content_dim, dim) if reads_content else None
        self.history_id = config.use_history and config.use_item_id
        self.id_dropout = config.id_dropout
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
            id_mean_BD = ragged_mean(self.item_id.weight, item_T, offsets_B1)
        if self.history_content is not None:
            content_mean_BE = ragged_mean(self.content, item_T, offsets_B1)
        return self.user_vectors_of_means(user_B, id_mean_BD, content_mean_BE)

    def user_vectors_of_means(
        self, user_B: Tensor, id_mean_BD: Tensor | None, content_mean_BE: Tensor | None
    ) -> Tensor:
        """Return (B, D) user vectors from histories already averaged (None: not read)."""
        parts = [self.user_features(user_B)]
        if self.user_id is not None:
            parts.append(self.user_id(self._some_unknown(user_B, self.user_id)))
        if id_mean_BD is not None:
            parts.append(id_mean_BD)
        if self.history_content is not None and content_mean_BE is not None:
            # The mean of projections is the projection of the mean: project once a row.
            parts.append(self.history_content(content_mean_BE))
        vectors_BD: Tensor = self.user_tower(torch.cat(parts, dim=1))
        return vectors_BD

    def item_vectors(self, item_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, D) item vectors and (B,) item biases; I = unknown."""
        parts = [self.item_features(item_B)]
        known_B = item_B
        if self.item_id is not None:
            known_B = self._some_unknown(item_B, self.item_id)
            parts.append(self.item_id(known_B))
        if self.item_content is not None:
            parts.append(self.item_content(self.content[item_B]))
        bias_B = self.bias.expand(len(item_B))
        if self.item_id is not None:
            bias_B = bias_B + self.item_bias[known_B]
        return self.item_tower(torch.cat(parts, dim=1)), bias_B

    def forward(self, user_B: Tensor, item_B: Tensor, item_T: Tensor, offsets_B1: Tensor) -> Tensor:
        """Return (B,) logits of user-item pairs."""
        item_BD, bias_B = self.item_vectors(item_B)
        return (self.user_vectors(user_B, item_T, offsets_B1) * item_BD).sum(1) + bias_B

    def _some_unknown(self, index_B: Tensor, table: nn.Embedding) -> Tensor:
        """Replace a share of ids by the unknown id, so that its row is trained as well."""
        if not self.training or self.id_dropout == 0:
            return index_B
        drop_B = torch.rand(len(index_B), device=index_B.device) < self.id_dropout
        return index_B.masked_fill(drop_B, table.num_embeddings - 1)
