"""The trie of the semantic IDs that exist: what may follow what, and which items share a leaf.

Built by one sort and first differences; no loop over items. Nodes of a level are numbered in
lexicographic order of their prefix, so a node's children are neighbours and the leaves are the
unique semantic IDs, sorted.

Letters: I items, S unique semantic IDs (leaves), L levels, K codes of a level, N nodes of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

DENSE_LIMIT = 1 << 26
"""Largest (N, K) table of booleans kept for a level (64 MiB); above it the children are listed."""


@dataclass(frozen=True, eq=False)
class Trie:
    """All semantic IDs of a catalogue.

    Attributes:
        codebook_sizes: K of each level.
        codes: (S, L) int32 unique semantic IDs in lexicographic order; the row is the leaf.
        leaf_of_item: (I,) int64.
        keys: for each level the (N of the next level,) int64 keys ``parent node * K + code`` of
            its nodes' children, ascending; the position of a key is the child's node number.
    """

    codebook_sizes: tuple[int, ...]
    codes: NDArray[np.int32]
    leaf_of_item: NDArray[np.int64]
    keys: tuple[NDArray[np.int64], ...]

    @classmethod
    def of(cls, codes: NDArray[np.int32], codebook_sizes: Sequence[int]) -> Trie:
        """Build the trie of item codes (I, L), I > 0."""
        sizes = tuple(int(size) for size in codebook_sizes)
        order = np.lexsort(codes.T[::-1])
        ranked = codes[order]
        is_new = np.ones(len(codes), dtype=bool)
        is_new[1:] = False
        node = np.zeros(len(codes), dtype=np.int64)
        keys = []
        for level, size in enumerate(sizes):
            is_new[1:] |= ranked[1:, level] != ranked[:-1, level]
            keys.append((node * size + ranked[:, level])[is_new])
            node = np.cumsum(is_new) - 1
        leaf_of_item = np.empty(len(codes), dtype=np.int64)
        leaf_of_item[order] = node
        return cls(sizes, ranked[is_new].astype(np.int32), leaf_of_item, tuple(keys))

    @property
    def n_leaves(self) -> int:
        """Number of unique semantic IDs, S."""
        return len(self.codes)

    def n_nodes(self, level: int) -> int:
        """Return the number of nodes that ``level`` starts from; 1 for level 0, the root."""
        return 1 if level == 0 else len(self.keys[level - 1])

    def log_shares(self, weight_S: NDArray[np.float64]) -> tuple[NDArray[np.float32], ...]:
        """Return the log share of each child in its parent's weight, a level as in ``keys``.

        Along a path the shares multiply up to that of the leaf in the whole.

        Args:
            weight_S: (S,) positive weight of each leaf.
        """
        shares, weight = [], weight_S
        for size, keys in zip(self.codebook_sizes[::-1], self.keys[::-1], strict=True):
            parent = keys // size
            whole = np.bincount(parent, weight).astype(np.float64)
            shares.append(np.log(weight / whole[parent]).astype(np.float32))
            weight = whole
        return tuple(shares[::-1])

    def buckets(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (S+1,) offsets and (I,) items: items of leaf s are items[offsets[s]:...[s+1]]."""
        items = np.argsort(self.leaf_of_item, kind="stable")
        counts = np.bincount(self.leaf_of_item, minlength=self.n_leaves)
        return np.concatenate([[0], np.cumsum(counts)]), items


@dataclass(frozen=True, eq=False)
class LevelTable:
    """The children of one level's nodes, on a device.

    ``dense`` (N, K) bool while small; otherwise ``starts`` (N+1,) into ``keys`` is used.
    ``bonus`` (as ``keys``) is added to the rank of a child; None for none.
    """

    size: int
    keys: torch.Tensor
    dense: torch.Tensor | None
    starts: torch.Tensor
    most_children: int
    bonus: torch.Tensor | None = None

    def legal(self, node: torch.Tensor) -> torch.Tensor:
        """Return (..., K) bool: which codes may follow each node of (...)."""
        if self.dense is not None:
            return self.dense[node]
        _, code = self._children(node)
        mask = torch.zeros(*node.shape, self.size + 1, dtype=torch.bool, device=node.device)
        return mask.scatter_(-1, code, True)[..., : self.size]

    def bonuses(self, node: torch.Tensor) -> torch.Tensor:
        """Return (..., K) float32: the bonus of each code after each node of (...), else 0."""
        position, code = self._children(node)
        table = torch.zeros(*node.shape, self.size + 1, device=node.device)
        if self.bonus is not None:
            table.scatter_(-1, code, self.bonus[position])
        return table[..., : self.size]

    def _children(self, node: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (..., most_children): the place of each child in ``keys``, and its code.

        Places beyond a node's last child have code K: a spare column, to be cut off.
        """
        position = self.starts[node].unsqueeze(-1) + torch.arange(
            self.most_children, device=node.device
        )
        inside = position < self.starts[node + 1].unsqueeze(-1)
        position = position.clamp(max=len(self.keys) - 1)
        return position, torch.where(inside, self.keys[position] % self.size, self.size)

    def child(self, node: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Return the child's node number of legal (node, code) pairs, any shape."""
        return torch.searchsorted(self.keys, node * self.size + code)


def level_tables(
    trie: Trie,
    device: torch.device,
    dense_limit: int = DENSE_LIMIT,
    bonus: Sequence[NDArray[np.float32]] | None = None,
) -> tuple[LevelTable, ...]:
    """Return the tables of every level on ``device``; ``bonus`` is laid out like ``trie.keys``."""
    tables = [_level_table(trie, level, device, dense_limit) for level in range(len(trie.keys))]
    if bonus is None:
        return tuple(tables)
    return tuple(
        replace(table, bonus=torch.from_numpy(of_level).to(device))
        for table, of_level in zip(tables, bonus, strict=True)
    )


def _level_table(trie: Trie, level: int, device: torch.device, dense_limit: int) -> LevelTable:
    size, n_nodes, keys = trie.codebook_sizes[level], trie.n_nodes(level), trie.keys[level]
    starts = np.searchsorted(keys, np.arange(n_nodes + 1, dtype=np.int64) * size)
    dense = None
    if n_nodes * size <= dense_limit:
        table = np.zeros(n_nodes * size, dtype=bool)
        table[keys] = True
        dense = torch.from_numpy(table.reshape(n_nodes, size)).to(device)
    return LevelTable(
        size=size,
        keys=torch.from_numpy(keys).to(device),
        dense=dense,
        starts=torch.from_numpy(starts).to(device),
        most_children=int(np.diff(starts).max()),
    )
