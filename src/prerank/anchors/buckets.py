"""The vector of each semantic ID, and anchors made of semantic IDs (method.md stage 5, form C)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prerank.anchors.trie import Trie
from prerank.artifacts import (
    FloatArray,
    InterestAnchors,
    ItemEmbeddings,
    SemanticIds,
    require,
)

NO_CONTENT = 1e-6


def trie_of(semantic_ids: SemanticIds, embeddings: ItemEmbeddings) -> Trie:
    """Return the trie of all items; raise DataError if the artifacts differ in length."""
    n_items = len(semantic_ids.codes)
    require(
        n_items == len(embeddings.vectors) and n_items > 0,
        "semantic IDs and item embeddings are of different catalogues",
        must=f"{n_items} rows, at least one",
        got=f"{len(embeddings.vectors)} rows",
    )
    return Trie.of(semantic_ids.codes, semantic_ids.codebook_sizes.tolist())


def bucket_vectors(trie: Trie, semantic_ids: SemanticIds, embeddings: ItemEmbeddings) -> FloatArray:
    """Return (S, D) float32 unit rows: the mean frozen embedding of each semantic ID's items.

    A bucket without content (all rows zero) falls back on its reconstruction, the sum of its codes'
    centroids; if those live in another space than the embeddings, it stays zero.
    """
    offsets, items = trie.buckets()
    sums = np.add.reduceat(embeddings.vectors[items], offsets[:-1], axis=0)
    empty = np.flatnonzero(np.linalg.norm(sums, axis=1) < NO_CONTENT)
    if semantic_ids.codebooks.shape[1] == sums.shape[1]:
        starts = np.concatenate([[0], np.cumsum(semantic_ids.codebook_sizes)])[:-1]
        sums[empty] = semantic_ids.codebooks[trie.codes[empty] + starts].sum(axis=1)
    norm = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.where(norm >= NO_CONTENT, sums / np.maximum(norm, NO_CONTENT), 0).astype(np.float32)


def anchors_of_leaves(
    leaf_UA: NDArray[np.integer],
    trie: Trie,
    vectors_SD: FloatArray,
    source: str,
    logprob_UA: FloatArray | None = None,
    logprob_legal_UA: FloatArray | None = None,
) -> InterestAnchors:
    """Return anchors from the leaves of all users, (U, A) with -1 for none, best first.

    Log-probabilities are 0 where none are given.
    """
    is_real = leaf_UA >= 0
    leaf = leaf_UA[is_real]
    zeros = np.zeros(len(leaf), dtype=np.float32)
    return InterestAnchors(
        offsets=np.concatenate([[0], np.cumsum(is_real.sum(axis=1))]).astype(np.int64),
        codes=trie.codes[leaf],
        vectors=vectors_SD[leaf],
        logprob=zeros if logprob_UA is None else logprob_UA[is_real],
        logprob_legal=zeros if logprob_legal_UA is None else logprob_legal_UA[is_real],
        source=source,
    )
