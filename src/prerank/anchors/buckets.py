"""The point of each semantic ID, and anchors made of semantic IDs (method.md stage 5, form C)."""

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


def bucket_vectors(trie: Trie, embeddings: ItemEmbeddings) -> FloatArray:
    """Return (S, D) float32 unit rows: the mean frozen embedding of each semantic ID's items.

    A bucket without content (all rows zero) stays zero. Its semantic ID is that of the zero vector:
    the sum of its centroids lies near some items, and means nothing.
    """
    offsets, items = trie.buckets()
    sums = np.add.reduceat(embeddings.vectors[items], offsets[:-1], axis=0)
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

    Leaves without content are none. All anchors of a leaf share its point. Log-probabilities are 0
    where none are given.
    """
    has_content_S = (vectors_SD != 0).any(axis=1)
    is_real = (leaf_UA >= 0) & has_content_S[leaf_UA]
    leaf = leaf_UA[is_real]
    zeros = np.zeros(len(leaf), dtype=np.float32)
    return InterestAnchors(
        offsets=np.concatenate([[0], np.cumsum(is_real.sum(axis=1))]).astype(np.int64),
        codes=trie.codes[leaf],
        point=leaf.astype(np.int32),
        points=vectors_SD,
        logprob=zeros if logprob_UA is None else logprob_UA[is_real],
        logprob_legal=zeros if logprob_legal_UA is None else logprob_legal_UA[is_real],
        source=source,
    )
