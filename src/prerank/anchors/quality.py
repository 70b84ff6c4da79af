"""How good anchors are before any label is made from them: the anchor quality report.

Judged by the items that users clicked in validation, never in test. Most missed semantic IDs are
lost at the first levels though the anchor lies near, so the cosine of the nearest anchor says more
than an exact hit; both are given, beside history, random and popular anchors of equal number.

Letters: U users, A anchors, P pairs of a user and the item clicked next, I items, N interactions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prerank import seeds
from prerank.anchors import controls
from prerank.anchors.buckets import trie_of
from prerank.anchors.sequences import anchor_sequences
from prerank.artifacts import (
    VALIDATION,
    Dataset,
    FloatArray,
    InterestAnchors,
    ItemEmbeddings,
    SemanticIds,
    TimeArray,
    places_of,
)

HEAD_SHARE = 0.2
MOST_PAIRS, CHUNK = 20_000, 2_000
CONTROLS = ("history", "random", "popular", "shuffled")


def anchor_quality(
    anchors: InterestAnchors,
    dataset: Dataset,
    semantic_ids: SemanticIds,
    embeddings: ItemEmbeddings,
    seed: int,
) -> dict[str, Any]:
    """Return the report on ``anchors`` and, under ``beside``, on controls of equal number.

    A control itself is reported alone: ``beside`` is empty.

    Keys of each, null where there is nothing to measure:
        users, anchors_per_user, first_codes_per_user: how many and how varied.
        probability_mass: mean over users of the probability that their anchors share.
        long_tail: mean share of items, in an anchor's bucket, outside the most frequent fifth.
        popularity: mean percentile of the anchors' semantic IDs by interactions before the cut.
        cosine: mean over the items clicked next of the largest cosine to an anchor of the user.
        cosine_random_item: the same for items with content, drawn evenly.
        auc: share of items clicked next that lie nearer than such an item.
        hit_rate: share of items clicked next whose exact semantic ID is an anchor.
    ``log_popularity`` and ``log_long_tail`` are those of the interactions before the cut.
    """
    user_P, item_P = clicked_next(dataset, seed)
    known_I = np.flatnonzero(embeddings.vectors.any(axis=1))
    if not len(known_I):
        user_P, item_P = user_P[:0], item_P[:0]  # nothing to compare with
    drawn_P = seeds.rng(seed, "anchors", "quality").choice(known_I, len(item_P))
    trie = trie_of(semantic_ids, embeddings)
    item_N = anchor_sequences(dataset).item
    percentile_S = _percentiles(np.bincount(trie.leaf_of_item[item_N], minlength=trie.n_leaves))
    count_I = np.bincount(item_N, minlength=len(trie.leaf_of_item))
    is_tail_I = _percentiles(count_I) < 1 - HEAD_SHARE
    tail_S = np.bincount(trie.leaf_of_item, is_tail_I, trie.n_leaves) / np.bincount(
        trie.leaf_of_item, minlength=trie.n_leaves
    )

    def one(found: InterestAnchors) -> dict[str, Any]:
        leaf_A = _leaves(found, trie.codes)
        near = nearest_cosine(found, embeddings.vectors, user_P, item_P)
        near_drawn = nearest_cosine(found, embeddings.vectors, user_P, drawn_P)
        known = ~np.isnan(near)
        wins = (near > near_drawn) + 0.5 * (near == near_drawn)
        hit = _hits(found, leaf_A, user_P, trie.leaf_of_item[item_P])
        return {
            "users": int((np.diff(found.offsets) > 0).sum()),
            "anchors_per_user": _mean(np.diff(found.offsets)[np.diff(found.offsets) > 0]),
            "first_codes_per_user": _mean(_distinct_first_codes(found)),
            "probability_mass": _mass(found),
            "long_tail": _mean(tail_S[leaf_A]),
            "popularity": _mean(percentile_S[leaf_A]),
            "cosine": _mean(near[known]),
            "cosine_random_item": _mean(near_drawn[known]),
            "auc": _mean(wins[known]),
            "hit_rate": _mean(hit[known]),
        }

    width = max(1, int(np.diff(anchors.offsets).max(initial=1)))
    # One at a time: each may be as large as the anchors themselves.
    others: dict[str, Callable[[], InterestAnchors]] = {
        "history": lambda: controls.history_anchors(dataset, semantic_ids, embeddings, width, seed),
        "random": lambda: controls.random_anchors(dataset, semantic_ids, embeddings, width, seed),
        "popular": lambda: controls.popular_anchors(dataset, semantic_ids, embeddings, width),
    }
    beside = {} if anchors.source in CONTROLS else others
    return {
        "source": anchors.source,
        **one(anchors),
        "pairs": len(user_P),
        "log_popularity": _mean(percentile_S[trie.leaf_of_item[item_N]]),
        "log_long_tail": _mean(is_tail_I[item_N]),
        "beside": {name: one(make()) for name, make in beside.items()},
    }


def clicked_next(dataset: Dataset, seed: int) -> tuple[TimeArray, TimeArray]:
    """Return (P,) users and (P,) items they clicked in validation, at most 20,000 pairs.

    From the pools where they hold validation rows, else from the exposures. A user's own history
    before the cut is left out: the nearest anchor of an item that was read is no news.
    """
    pools, exposures = dataset.pools, dataset.exposures
    for table in (pools, exposures):
        chosen = np.flatnonzero((table.split == VALIDATION) & (table.click == 1))
        if len(chosen):
            break
    key = table.user[chosen].astype(np.int64) * len(dataset.items) + table.item[chosen]
    histories = anchor_sequences(dataset)
    read = histories.owners() * len(dataset.items) + histories.item
    pairs = np.setdiff1d(key, read)
    if len(pairs) > MOST_PAIRS:
        rng = seeds.rng(seed, "anchors", "quality", "pairs")
        pairs = np.sort(rng.choice(pairs, MOST_PAIRS, replace=False))
    return pairs // len(dataset.items), pairs % len(dataset.items)


def nearest_cosine(
    anchors: InterestAnchors, vectors_ID: FloatArray, user_P: TimeArray, item_P: TimeArray
) -> FloatArray:
    """Return (P,) float32: the largest cosine of the item to an anchor of the user.

    NaN where the user has no anchors or the item has no content.
    """
    found = np.full(len(user_P), np.nan, dtype=np.float32)
    for start in range(0, len(user_P), CHUNK):
        user, item = user_P[start : start + CHUNK], item_P[start : start + CHUNK]
        has = (np.diff(anchors.offsets)[user] > 0) & (vectors_ID[item] != 0).any(axis=1)
        rows, offsets = places_of(anchors.offsets, user[has])
        if len(rows):
            repeated = np.repeat(item[has], np.diff(offsets))
            cosine = np.einsum("nd,nd->n", anchors.vectors_of(rows), vectors_ID[repeated])
            found[start : start + CHUNK][has] = np.maximum.reduceat(cosine, offsets[:-1])
    return found


def _percentiles(count: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return each count's middle rank in [0, 1]: ties share their mean."""
    ranked = np.sort(count)
    below, above = np.searchsorted(ranked, count, "left"), np.searchsorted(ranked, count, "right")
    middle: NDArray[np.float64] = (below + above) / (2 * len(count))
    return middle


def _leaves(anchors: InterestAnchors, codes_SL: NDArray[np.int32]) -> TimeArray:
    """Return (A,) the row of each anchor's semantic ID in the sorted unique ``codes_SL``.

    One level at a time, so that the product of the codebook sizes never has to fit in an integer.
    """
    prefix_S = np.zeros(len(codes_SL), dtype=np.int64)
    row_A = np.zeros(len(anchors.codes), dtype=np.int64)
    for code_S, code_A in zip(codes_SL.T, anchors.codes.T, strict=True):
        size = int(code_S.max(initial=0)) + 1
        found, prefix_S = np.unique(prefix_S * size + code_S, return_inverse=True)
        row_A = np.searchsorted(found, row_A * size + code_A).astype(np.int64)
    return row_A


def _hits(
    anchors: InterestAnchors, leaf_A: TimeArray, user_P: TimeArray, leaf_P: TimeArray
) -> NDArray[np.bool_]:
    width = int(max(leaf_A.max(initial=0), leaf_P.max(initial=0))) + 1
    return np.isin(user_P * width + leaf_P, anchors.users().astype(np.int64) * width + leaf_A)


def _distinct_first_codes(anchors: InterestAnchors) -> NDArray[np.int64]:
    """Return the number of first-level codes of each user with anchors."""
    width = int(anchors.codes[:, 0].max(initial=0)) + 1
    keys = np.unique(anchors.users().astype(np.int64) * width + anchors.codes[:, 0])
    distinct = np.bincount(keys // width)
    return distinct[distinct > 0]


def _mass(anchors: InterestAnchors) -> float | None:
    """Return the mean probability that a user's anchors hold; None for sources without any.

    Joined anchors of a source without probabilities carry a logprob of 0 and do not count.
    """
    given = anchors.logprob < 0
    if not given.any():
        return None
    probability = np.exp(anchors.logprob[given].astype(np.float64))
    mass_U = np.bincount(anchors.users()[given], probability)
    return _mean(mass_U[mass_U > 0])


def _mean(values: NDArray[Any]) -> float | None:
    return round(float(np.mean(values, dtype=np.float64)), 6) if len(values) else None
