"""What pre-rankers read, as fields: ids, features, content and history.

A field is one named vector a row, such as a category's embedding. Models differ in what they make
of the fields.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prerank.artifacts import FloatArray
from prerank.errors import ConfigError
from prerank.ranking.config import TrainConfig
from prerank.ranking.context import ScoringContext
from prerank.ranking.features import FeatureTable, ListTable
from prerank.ranking.fused import Field, Looked, gathered, mlp
from prerank.ranking.optimizer import RowTable
from prerank.ranking.pooling import ragged_mean, ragged_rows, ragged_softmax, ragged_sum

CATEGORY_DIM = 16
ID_SCALE = 0.01  # standard deviation of new id embeddings: an item never shown adds almost nothing

Widths = dict[str, int]
"""Field name -> its number of columns, in the order of the fields."""


class FeatureFields(nn.Module):
    """Looks up a feature table.

    Args:
        table: the features.
        rows_R: (R,) training rows of each user or item.
        config: how sequences are pooled.
    """

    codes: Tensor
    numeric: Tensor

    def __init__(self, table: FeatureTable, rows_R: Tensor, config: TrainConfig) -> None:
        super().__init__()
        self.register_buffer("codes", torch.from_numpy(table.codes), persistent=False)
        self.register_buffer("numeric", torch.from_numpy(table.numeric), persistent=False)
        self.embedding = nn.Embedding(max(table.n_codes, 1), CATEGORY_DIM)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self._forget_unseen(table, rows_R)
        self.widths: Widths = dict.fromkeys(table.names, CATEGORY_DIM)
        if table.numeric.shape[1]:
            self.widths["numbers"] = table.numeric.shape[1]
        attend = config.sequence_pooling == "attention"
        self.lists = nn.ModuleList(
            ListField(lists, attention=attend and lists.ordered) for lists in table.lists
        )
        self.widths |= {lists.name: CATEGORY_DIM for lists in table.lists}
        self.vectors = nn.ModuleList(VectorField(given) for _, given in table.vectors)
        self.widths |= {name: CATEGORY_DIM for name, _ in table.vectors}

    def _forget_unseen(self, table: FeatureTable, rows_R: Tensor) -> None:
        """Zero what no training row will ever move: an unseen value says nothing."""
        shown_R = rows_R.cpu().numpy() > 0
        seen = torch.zeros(len(self.embedding.weight), dtype=torch.bool)
        read = [table.codes[:-1][shown_R].ravel()]
        read += [of.codes[:-1][shown_R][of.inside[:-1][shown_R]] for of in table.lists]
        for codes in read:
            seen[torch.from_numpy(codes).long()] = True
        with torch.no_grad():
            self.embedding.weight[~seen] = 0

    def forward(self, index_B: Tensor) -> list[Tensor]:
        """Return the fields, each (B, width)."""
        fields: list[Tensor] = []
        if self.codes.shape[1]:
            embedded_BFD = self.embedding(self.codes.index_select(0, index_B))
            fields += embedded_BFD.unbind(1)
        if self.numeric.shape[1]:
            fields.append(self.numeric.index_select(0, index_B))
        fields += [lists(index_B, self.embedding) for lists in self.lists]
        return fields + [vectors(index_B) for vectors in self.vectors]


class ListField(nn.Module):
    """Pools the embeddings of a list: their mean, or attention to what and how late.

    Attention starts as the mean.
    """

    codes: Tensor
    inside: Tensor

    def __init__(self, table: ListTable, *, attention: bool) -> None:
        super().__init__()
        self.register_buffer("codes", torch.from_numpy(table.codes), persistent=False)
        self.register_buffer("inside", torch.from_numpy(table.inside), persistent=False)
        width = table.codes.shape[1]
        self.query = nn.Parameter(torch.zeros(CATEGORY_DIM)) if attention else None
        self.recency = nn.Parameter(torch.zeros(width)) if attention else None

    def forward(self, index_B: Tensor, embedding: nn.Embedding) -> Tensor:
        """Return (B, D)."""
        value_BMD = embedding(self.codes.index_select(0, index_B))
        inside_BM = self.inside.index_select(0, index_B)
        if self.query is None or self.recency is None:
            weight_BM = inside_BM / inside_BM.sum(1, keepdim=True)
        else:
            from_end_BM = inside_BM.sum(1, keepdim=True) - inside_BM.cumsum(1)
            score_BM = value_BMD @ self.query + self.recency[from_end_BM]
            weight_BM = score_BM.masked_fill(~inside_BM, -torch.inf).softmax(1)
        pooled_BD: Tensor = (weight_BM[:, None] @ value_BMD).squeeze(1)
        return pooled_BD


class VectorField(nn.Module):
    """Projects a given embedding and its missing flag."""

    given: Tensor

    def __init__(self, given: FloatArray) -> None:
        super().__init__()
        self.register_buffer("given", torch.from_numpy(given), persistent=False)
        self.project = nn.Linear(given.shape[1], CATEGORY_DIM)

    def forward(self, index_B: Tensor) -> Tensor:
        """Return (B, D)."""
        projected: Tensor = self.project(self.given.index_select(0, index_B))
        return projected


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
        self.touched: RowTable | None = None
        self.share: tuple[Tensor, int] | None = None

    def forward(self, index_B: Tensor) -> tuple[Looked, Tensor]:
        """Return (B, D) embeddings, not gathered yet, and (B,) the table rows they come from."""
        row_B = self.own.index_select(0, index_B)
        if self.training and self.dropout > 0:
            drop_B = self._chance(row_B) < self.dropout
            row_B = row_B.masked_fill(drop_B, self.unknown)
        return self._looked(row_B), row_B

    def _chance(self, row_B: Tensor) -> Tensor:
        if self.share is None or len(self.share[0]) != len(row_B):
            return torch.rand(len(row_B), device=row_B.device)
        place_B, n_rows = self.share
        return torch.rand(n_rows, device=row_B.device).index_select(0, place_B)

    def rows(self, item_T: Tensor) -> Tensor:
        """Return (T, D): the embeddings of history items."""
        return gathered(self._looked(self.own.index_select(0, item_T)))

    def mean(self, item_T: Tensor, offsets_B1: Tensor) -> Tensor:
        """Return (B, D): the mean embedding of ragged histories."""
        row_T = self.own.index_select(0, item_T)
        if self.touched is not None:
            return ragged_mean(self.touched.values[0], self.touched.place(row_T), offsets_B1)
        return ragged_mean(self.embedding.weight, row_T, offsets_B1)

    def _looked(self, row_N: Tensor) -> Looked:
        if self.touched is not None:
            return Looked(self.touched.values[0], self.touched.place(row_N))
        return Looked(self.embedding.weight, row_N)

    def touch(self, table: RowTable, index: Sequence[Tensor]) -> None:
        """Read the rows of ``index`` (ids) from ``table`` until `release`.

        The row of the unknown is among them: dropout may ask for it.
        """
        own = [self.own.index_select(0, part) for part in index]
        table.focus(torch.cat([*own, self.own[-1:]]))
        self.touched = table

    def release(self) -> None:
        """Read from the whole table again."""
        self.touched = None


class HistoryAttention(nn.Module):
    """Weighs the items of a history by what they are and how late they came.

    One learned query for all users, so that it is computed once a request; it starts as the mean.
    Histories that are sets know no late and early.
    """

    def __init__(
        self, id_dim: int, content_dim: int, config: TrainConfig, context: ScoringContext
    ) -> None:
        super().__init__()
        self.id_query = nn.Parameter(torch.zeros(id_dim)) if id_dim else None
        self.content_query = nn.Parameter(torch.zeros(content_dim)) if content_dim else None
        is_set = context.time_unit == "none"
        self.recency = None if is_set else nn.Parameter(torch.zeros(config.max_history))

    def forward(
        self, id_TD: Tensor | None, content_TE: Tensor | None, offsets_B1: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the weighted means (B, D) and (B, E); None for what is not read."""
        given = [
            (rows, query)
            for rows, query in ((id_TD, self.id_query), (content_TE, self.content_query))
            if rows is not None and query is not None
        ]
        if not given:
            return None, None
        n_items = given[0][0].shape[0]
        row_T = ragged_rows(offsets_B1, n_items)
        # A sum of products, as ONNX Runtime multiplies no matrix without rows.
        score_T = torch.stack([(rows * query).sum(1) for rows, query in given]).sum(0)
        if self.recency is not None:
            position_T = torch.arange(n_items, device=row_T.device)
            from_end_T = offsets_B1[1:].index_select(0, row_T) - 1 - position_T
            score_T = score_T + self.recency.index_select(0, from_end_T)
        weight_T1 = ragged_softmax(score_T, row_T, offsets_B1.shape[0] - 1)[:, None]
        means = [
            None if rows is None else ragged_sum(weight_T1 * rows, row_T, offsets_B1.shape[0] - 1)
            for rows in (id_TD, content_TE)
        ]
        return means[0], means[1]


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
        self.user_features = FeatureFields(context.users, user_rows_U, config)
        self.item_features = FeatureFields(context.items, item_rows_I, config)
        self.user_id = Ids(user_rows_U, config) if config.use_user_id else None
        self.item_id = Ids(item_rows_I, config) if config.use_item_id else None
        self.item_bias = nn.Parameter(torch.zeros(len(context.items) + 1))
        self.bias = nn.Parameter(torch.tensor(math.log(click_rate / (1 - click_rate))))
        self.item_content = nn.Linear(content_dim, dim) if content_dim else None
        reads_content = bool(content_dim) and config.use_history
        self.history_content = nn.Linear(content_dim, dim) if reads_content else None
        self.history_id = config.use_history and config.use_item_id
        self.attention = None
        if config.sequence_pooling == "attention" and config.use_history:
            id_dim = dim if self.history_id else 0
            self.attention = HistoryAttention(id_dim, content_dim, config, context)
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

    def share_dropout(self, users: tuple[Tensor, int], items: tuple[Tensor, int]) -> None:
        """Drop the ids that one process would drop, where several share a batch.

        Args:
            users, items: (B,) int64 places of what this process reads in what the batch reads,
                and how much that is.
        """
        for ids, share in ((self.user_id, users), (self.item_id, items)):
            if ids is not None:
                ids.share = share

    def user(self, user_B: Tensor, item_T: Tensor, offsets_B1: Tensor) -> list[Tensor]:
        """Return the user's fields, each (B, width).

        Args:
            user_B: (B,) int64; U = unknown.
            item_T: (T,) int32 items of all histories end to end.
            offsets_B1: (B + 1,) int32 borders of the histories.
        """
        return [gathered(field) for field in self.user_fields(user_B, item_T, offsets_B1)]

    def user_fields(self, user_B: Tensor, item_T: Tensor, offsets_B1: Tensor) -> list[Field]:
        """Return what `user` does; ids are not gathered yet."""
        id_mean_BD, content_mean_BE = self._history(item_T, offsets_B1)
        fields: list[Field] = [*self.user_features(user_B)]
        if self.user_id is not None:
            fields.append(self.user_id(user_B)[0])
        if id_mean_BD is not None:
            fields.append(id_mean_BD)
        if self.history_content is not None and content_mean_BE is not None:
            # The mean of projections is the projection of the mean: project once a row.
            fields.append(mlp(self.history_content, content_mean_BE))
        return fields

    def _history(self, item_T: Tensor, offsets_B1: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the (B, D) mean id embedding and the (B, E) mean content of the histories."""
        id_mean_BD = content_mean_BE = None
        if self.attention is not None:
            id_TD = self.item_id.rows(item_T) if self.history_id and self.item_id else None
            content_TE = self.content.index_select(0, item_T) if self.history_content else None
            means: tuple[Tensor | None, Tensor | None]
            means = self.attention(id_TD, content_TE, offsets_B1)
            return means
        if self.history_id and self.item_id is not None:
            id_mean_BD = self.item_id.mean(item_T, offsets_B1)
        if self.history_content is not None:
            content_mean_BE = ragged_mean(self.content, item_T, offsets_B1)
        return id_mean_BD, content_mean_BE

    def item(self, item_B: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the item's fields, each (B, width), and its bias (B,); I = unknown."""
        fields, item_bias = self.item_fields(item_B)
        bias_B = self.bias.expand(item_B.shape[0])
        if item_bias is not None:
            bias_B = bias_B + gathered(item_bias)
        return [gathered(field) for field in fields], bias_B

    def item_fields(self, item_B: Tensor) -> tuple[list[Field], Looked | None]:
        """Return the item's fields, and what its bias adds to `bias`; ids are not gathered yet."""
        fields: list[Field] = [*self.item_features(item_B)]
        item_bias = None
        if self.item_id is not None:
            looked, row_B = self.item_id(item_B)
            fields.append(looked)
            item_bias = Looked(self.item_bias, row_B)
            if self.item_id.touched is not None:
                item_bias = Looked(self.item_id.touched.values[1], looked.row)
        if self.item_content is not None:
            fields.append(mlp(self.item_content, self.content.index_select(0, item_B)))
        return fields, item_bias


def _sized(switches: dict[str, bool], dim: int) -> Widths:
    return {name: dim for name, on in switches.items() if on}


def layers(width: int, config: TrainConfig) -> tuple[list[nn.Module], int]:
    """Return the hidden layers of ``config`` on ``width`` inputs, and the last one's width."""
    found: list[nn.Module] = []
    for size in config.hidden:
        found += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(config.dropout)]
        width = size
    return found, width
