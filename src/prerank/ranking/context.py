"""What a pre-ranker must know of the data to score: features, content vectors, histories.

The last row of each feature table and of the content table describes the unknown user or item
(index -1 outside): every feature missing, no content, no history.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prerank.artifacts import (
    TRAIN,
    Dataset,
    FloatArray,
    IntArray,
    Interactions,
    ItemEmbeddings,
    TimeArray,
    TimeUnit,
    require,
)
from prerank.data.history import history_ends
from prerank.data.unexposed import contains, exposure_counts, pair_keys
from prerank.ranking.config import TrainConfig
from prerank.ranking.features import FeatureTable
from prerank.ranking.pooling import repeated

POPULARITY = "log exposures"
"""The item feature that ``use_popularity`` adds: log(1 + training exposures)."""


def as_read(dataset: Dataset, config: TrainConfig) -> Dataset:
    """Return ``dataset`` with the item feature that ``config`` adds to those of the log, if any.

    An exposed row counts among its item's exposures; an unknown item reads the mean of all.

    Raises:
        DataError: the log has a feature of that name.
    """
    if not config.use_popularity:
        return dataset
    features = dataset.catalog.features
    kinds = (features.categorical, features.numeric, features.lists, features.vectors)
    require(
        not any(POPULARITY in kind for kind in kinds),
        "an item feature has the name that train.use_popularity gives its own",
        where="items",
        must="another name, or train.use_popularity = false",
        got=POPULARITY,
    )
    count = np.log1p(exposure_counts(dataset)).astype(np.float32)
    more = replace(features, numeric={**features.numeric, POPULARITY: count})
    return replace(dataset, catalog=replace(dataset.catalog, features=more))


@dataclass(frozen=True, eq=False)
class ScoringContext:
    """All data-derived arrays behind a pre-ranker's scores.

    Attributes:
        time_unit: of the dataset; decides what a history is.
        users, items: feature tables of U and I rows (and one for the unknown).
        content: (I + 1, D) float32 frozen content vectors; D = 0 where the model reads none.
        interactions: the source of histories; empty where the model reads none.
    """

    time_unit: TimeUnit
    users: FeatureTable
    items: FeatureTable
    content: FloatArray
    interactions: Interactions

    @classmethod
    def of(
        cls, dataset: Dataset, embeddings: ItemEmbeddings, config: TrainConfig
    ) -> ScoringContext:
        """Take from ``dataset`` and ``embeddings`` what ``config`` lets the model read."""
        require(
            len(embeddings.vectors) == len(dataset.items),
            "item embeddings and dataset differ in items",
            must=f"{len(dataset.items)} rows",
            got=len(embeddings.vectors),
        )
        n_items = len(dataset.items)
        vectors = embeddings.vectors if config.use_content else np.zeros((n_items, 0), np.float32)
        unknown = np.zeros((1, vectors.shape[1]), np.float32)
        empty = np.zeros(0, np.int32)
        nothing = Interactions(empty, empty, np.zeros(0, np.int64))
        return cls(
            time_unit=dataset.time_unit,
            users=FeatureTable.of(
                dataset.user_features, config, seen_in_training(dataset, "user", len(dataset.users))
            ),
            items=FeatureTable.of(
                dataset.catalog.features, config, seen_in_training(dataset, "item", n_items)
            ),
            content=np.concatenate([vectors, unknown]),
            interactions=dataset.interactions if config.use_history else nothing,
        )

    @cached_property
    def starts(self) -> TimeArray:
        """(U + 2,) int64: where each user's interactions start; the unknown user has none."""
        return self.interactions.offsets(len(self.users) + 1)

    @cached_property
    def _pairs(self) -> TimeArray:
        """Sorted unique keys of the interacted pairs."""
        return np.unique(pair_keys(self.interactions.user, self.interactions.item))

    def history_ends(self, user: IntArray, time: TimeArray | None) -> TimeArray:
        """Return (N,) int64: where each row's history ends; the last known item if no ``time``.

        ``user`` may hold -1, whose history is empty.
        """
        known = user >= 0
        ends: TimeArray = self.starts[np.where(known, user, len(self.users)) + 1]
        if time is not None:
            ends[known] = history_ends(
                self.interactions, len(self.users), self.time_unit, user[known], time[known]
            )
        return ends

    def left_out(self, user: IntArray, item: IntArray) -> IntArray:
        """Return (N,) int32: the item to leave out of each row's history, -1 for none.

        Only data without time needs it: there a row's own item may stand in its user's set.
        """
        if self.time_unit != "none" or not len(self.interactions):
            return np.full(len(item), -1, dtype=np.int32)
        inside = contains(self._pairs, pair_keys(user, item)) & (item >= 0)
        return np.where(inside, item, np.int32(-1)).astype(np.int32)


def seen_in_training(dataset: Dataset, column: str, size: int) -> NDArray[np.bool_]:
    """Return (size,) bool: who or what stands in a training exposure."""
    table = dataset.exposures
    seen = np.zeros(size, dtype=np.bool_)
    seen[getattr(table, column)[table.split == TRAIN]] = True
    return seen


class Histories:
    """The interactions on a device, cut into ragged histories batch by batch."""

    def __init__(self, context: ScoringContext, max_history: int, device: torch.device) -> None:
        self.offsets = torch.from_numpy(context.starts).to(device)
        self.item = torch.from_numpy(context.interactions.item).to(device)
        self.max_history = max_history
        self.is_set = context.time_unit == "none"

    def ragged(self, user_B: Tensor, end_B: Tensor, left_out_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the histories end to end: items (T,) int32 and offsets (B + 1,) int32.

        At most ``max_history`` items each: the latest ones, or an even spread over a set, which
        has no latest.

        Args:
            user_B: (B,) int64, U = unknown.
            end_B: (B,) int64 row of the interactions where the history ends.
            left_out_B: (B,) int32 item to leave out, -1 for none.
        """
        if not len(self.item):
            return self.item, torch.zeros(
                len(user_B) + 1, dtype=torch.int32, device=self.item.device
            )
        start_B = self.offsets.index_select(0, user_B)
        if not self.is_set:
            start_B = torch.maximum(start_B, end_B - self.max_history)
        size_B = end_B - start_B
        taken_B = size_B.clamp_max(self.max_history)
        offsets_B1 = torch.cat([taken_B.new_zeros(1), taken_B.cumsum(0)])
        total = int(offsets_B1[-1])
        # Half the bytes are half the time, where no number below is too large for them.
        largest = len(self.item) * (self.max_history if self.is_set else 1)
        kind = torch.int32 if largest < 1 << 31 else torch.int64
        row_T = torch.arange(total, device=user_B.device, dtype=kind)

        def spread(values_B: Tensor) -> Tensor:
            return repeated(values_B.to(kind), taken_B, total)

        if self.is_set and bool((size_B > taken_B).any()):
            step_T = row_T - spread(offsets_B1[:-1])
            row_T = spread(start_B) + step_T * spread(size_B) // spread(taken_B)
        else:
            row_T += spread(start_B - offsets_B1[:-1])
        item_T = self.item.index_select(0, row_T)
        if self.is_set:
            keep_T = item_T != spread(left_out_B)
            item_T = item_T.index_select(0, keep_T.nonzero().squeeze(1))
            kept_T1 = torch.cat([keep_T.new_zeros(1, dtype=torch.int64), keep_T.cumsum(0)])
            offsets_B1 = kept_T1.index_select(0, offsets_B1)
        return item_T, offsets_B1.to(torch.int32)
