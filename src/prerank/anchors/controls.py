"""Anchors without the LLM: the controls that decide whether it helps (method.md section 4).

Each is another producer of InterestAnchors, so an ablation is one line of a recipe. Only users with
a history before the anchor cut get anchors, like those of the LLM; log-probabilities are 0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prerank import seeds
from prerank.anchors.buckets import anchors_of_leaves, bucket_vectors, trie_of
from prerank.anchors.sequences import anchor_sequences, is_unordered
from prerank.artifacts import (
    Dataset,
    FloatArray,
    InterestAnchors,
    ItemEmbeddings,
    SemanticIds,
    places_of,
    require,
)


def history_anchors(
    dataset: Dataset,
    semantic_ids: SemanticIds,
    embeddings: ItemEmbeddings,
    n_anchors: int,
    seed: int = 0,
) -> InterestAnchors:
    """Return each user's ``n_anchors`` most recent different items, last first; no LLM at all.

    The point is the item's own, not its bucket's; items without content are left out. Where the
    data has no time, they are a random subset drawn with ``seed``.
    """
    histories = anchor_sequences(dataset)
    histories = histories.keep((embeddings.vectors[histories.item] != 0).any(axis=1))
    if is_unordered(dataset, "auto"):
        histories = histories.shuffled(seeds.rng(seed, "anchors", "history"))
    histories = histories.distinct().last(n_anchors)
    owner = histories.owners()
    mirrored = histories.offsets[:-1][owner] + histories.offsets[1:][owner] - 1
    item = histories.item[mirrored - np.arange(len(owner))]
    zeros = np.zeros(len(item), dtype=np.float32)
    return InterestAnchors(
        offsets=histories.offsets,
        codes=semantic_ids.codes[item],
        point=item.astype(np.int32),
        points=embeddings.vectors,
        logprob=zeros,
        logprob_legal=zeros.copy(),
        source="history",
    )


def random_anchors(
    dataset: Dataset,
    semantic_ids: SemanticIds,
    embeddings: ItemEmbeddings,
    n_anchors: int,
    seed: int,
) -> InterestAnchors:
    """Return ``n_anchors`` different existing semantic IDs a user, drawn uniformly.

    Fewer than ``n_anchors`` only where the catalogue has not many more semantic IDs than that.
    """
    trie = trie_of(semantic_ids, embeddings)
    has_history = anchor_sequences(dataset).lengths > 0
    rng = seeds.rng(seed, "anchors", "random")
    # Twice as many as needed, so that dropping repeats leaves enough.
    drawn_UM = rng.integers(trie.n_leaves, size=(len(has_history), 2 * n_anchors))
    order_UM = np.argsort(drawn_UM, axis=1, kind="stable")
    ranked_UM = np.take_along_axis(drawn_UM, order_UM, axis=1)
    repeated_UM = np.zeros_like(ranked_UM, dtype=bool)
    repeated_UM[:, 1:] = ranked_UM[:, 1:] == ranked_UM[:, :-1]
    is_first_UM = np.empty_like(repeated_UM)
    np.put_along_axis(is_first_UM, order_UM, ~repeated_UM, axis=1)
    is_kept_UM = is_first_UM & (is_first_UM.cumsum(axis=1) <= n_anchors) & has_history[:, None]
    leaf_UM = np.where(is_kept_UM, drawn_UM, -1)
    vectors_SD = bucket_vectors(trie, embeddings)
    return anchors_of_leaves(leaf_UM, trie, vectors_SD, "random")


def popular_anchors(
    dataset: Dataset, semantic_ids: SemanticIds, embeddings: ItemEmbeddings, n_anchors: int
) -> InterestAnchors:
    """Return the semantic IDs with most interactions before the anchor cut, the same for all."""
    trie = trie_of(semantic_ids, embeddings)
    histories = anchor_sequences(dataset)
    counts = np.bincount(trie.leaf_of_item[histories.item], minlength=trie.n_leaves)
    best = np.argsort(-counts, kind="stable")[:n_anchors]
    best = best[counts[best] > 0]
    leaf_UA = np.where(histories.lengths[:, None] > 0, best, -1)
    vectors_SD = bucket_vectors(trie, embeddings)
    return anchors_of_leaves(leaf_UA, trie, vectors_SD, "popular")


def shuffled_anchors(anchors: InterestAnchors, seed: int) -> InterestAnchors:
    """Return every user with another user's anchors (nobody keeps their own); must not win.

    Users without anchors stay without; a single user with anchors loses them.
    """
    counts = np.diff(anchors.offsets)
    cycle = seeds.rng(seed, "anchors", "shuffled").permutation(np.flatnonzero(counts))
    donor = np.full(len(counts), -1, dtype=np.int64)
    if len(cycle) > 1:
        donor[cycle] = np.roll(cycle, 1)
    rows, offsets = places_of(anchors.offsets, donor)
    return replace(anchors.take(rows, offsets), source="shuffled")


def join(first: InterestAnchors, second: InterestAnchors) -> InterestAnchors:
    """Return each user's anchors of both sources, those of ``first`` before those of ``second``.

    Extension, ours: the user's own history beside the anchors that the LLM generated. Points that
    both know as one table stay one; else those of ``second`` follow those of ``first``.
    """
    require(first.n_users == second.n_users, "anchors to join are of different users")
    # A row moves on by the other source's rows before it: its user's own stand behind the first's.
    place_first = np.arange(len(first.codes))
    place_first += np.repeat(second.offsets[:-1], np.diff(first.offsets))
    place_second = np.arange(len(second.codes))
    place_second += np.repeat(first.offsets[1:], np.diff(second.offsets))

    def merged(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
        out = np.empty((len(one) + len(other), *one.shape[1:]), one.dtype)
        out[place_first], out[place_second] = one, other
        return out

    points, moved = first.points, 0
    if not _same(points, second.points):
        points, moved = np.concatenate([points, second.points]), len(points)
    return InterestAnchors(
        offsets=first.offsets + second.offsets,
        codes=merged(first.codes, second.codes),
        point=merged(first.point, second.point + np.int32(moved)),
        points=points,
        logprob=merged(first.logprob, second.logprob),
        logprob_legal=merged(first.logprob_legal, second.logprob_legal),
        source=f"{first.source}+{second.source}",
    )


def _same(one: FloatArray, other: FloatArray) -> bool:
    return one is other or np.array_equal(one, other)
