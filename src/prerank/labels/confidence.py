"""How far a pseudo-label can be trusted.

Source: method.md stage 6. S: three factors, dispersion of the anchors, closeness to the history,
probability of the language model. C: their forms and the way they are combined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import (
    Dataset,
    FloatArray,
    IntArray,
    InterestAnchors,
    ItemEmbeddings,
    TimeArray,
)
from prerank.data.history import anchor_ends
from prerank.labels.matching import Groups, Pooling, match_groups

NEUTRAL = 0.5
"""Normalised rank of a pair that lacks a factor which others have."""
DECIMALS = 5
"""Factors are compared at this precision: float noise must not make ranks out of ties."""
GRID = 10**DECIMALS + 10
"""Grid points on either side of 0; a cosine may exceed 1 by float noise."""


@dataclass(frozen=True, eq=False)
class Factors:
    """The three factors of each anchor and user; NaN where there is nothing to tell.

    Attributes:
        dispersion: (U,) float32 mean pairwise cosine of a user's anchors (needs two).
        history: (A,) float32 largest cosine of an anchor to its user's history.
        llm: (A,) float32 in (0, 1], exp(mean log-probability a level); NaN for anchors that no
            language model made (their logprob is exactly 0).
    """

    dispersion: FloatArray
    history: FloatArray
    llm: FloatArray


def factors(
    dataset: Dataset, embeddings: ItemEmbeddings, anchors: InterestAnchors, history_length: int
) -> Factors:
    """Return the factors of all anchors and users; the history ends where the anchors' own does."""
    return Factors(
        dispersion=dispersion(anchors),
        history=history_closeness(dataset, embeddings, anchors, history_length),
        llm=llm_probability(anchors),
    )


def dispersion(anchors: InterestAnchors) -> FloatArray:
    """Return q_d(u), (U,) float32: mean cosine over the pairs of a user's anchors.

    For unit vectors, the sum of cosines over all ordered pairs is |sum a|^2 - K, so that no pair
    is ever formed. NaN for users with fewer than two anchors.
    """
    n = np.diff(anchors.offsets)
    cosines = np.empty(len(n))
    for users, vectors, offsets in anchors.by_users():
        total = _group_sums(vectors, offsets)
        square = _group_sums((vectors**2).sum(axis=1)[:, None], offsets)[:, 0]
        cosines[users] = (total**2).sum(axis=1) - square
    mean = np.full(len(n), np.nan)
    several = n > 1
    mean[several] = cosines[several] / (n * (n - 1))[several]
    return mean.astype(np.float32)


def _group_sums(values: FloatArray, offsets: TimeArray) -> NDArray[np.float64]:
    """Return (U, D) sums over the rows of each group; zeros where a group is empty."""
    sums = np.zeros((len(offsets) - 1, values.shape[1]))
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):
        sums[filled] = np.add.reduceat(values, offsets[filled], axis=0, dtype=np.float64)
    return sums


def history_closeness(
    dataset: Dataset, embeddings: ItemEmbeddings, anchors: InterestAnchors, history_length: int
) -> FloatArray:
    """Return max_t cos(a_k, e_t) of each anchor over its user's history, (A,) float32.

    The history is the user's last ``history_length`` interactions, of items with content, that the
    anchors may see; NaN where it is empty.
    """
    past = dataset.interactions
    told = np.any(embeddings.vectors, axis=1)[past.item]
    before = np.concatenate([[0], np.cumsum(told)])
    start = before[past.offsets(len(dataset.users))[:-1]]
    end = before[anchor_ends(dataset)]
    first = np.maximum(start, end - history_length)
    queries = Groups(anchors.points, anchors.point, anchors.offsets[:-1], np.diff(anchors.offsets))
    keys = Groups(embeddings.vectors, past.item[told], first, end - first)
    return match_groups(queries, keys, Pooling()).relevance


def llm_probability(anchors: InterestAnchors) -> FloatArray:
    """Return q_l(u, k) = exp(logprob / L), (A,) float32; NaN where no language model spoke."""
    n_levels = max(anchors.codes.shape[1], 1)
    spoken = anchors.logprob < 0
    return np.where(spoken, np.exp(anchors.logprob / n_levels), np.nan).astype(np.float32)


def of_pairs(
    found: Factors, anchors: InterestAnchors, user: IntArray, anchor: TimeArray, by: str
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return dispersion, history and llm of each pair, (N,) float32, NaN where absent.

    Args:
        found: factors of users and anchors.
        anchors: the anchors they belong to.
        user: (N,) int32.
        anchor: (N,) int64 matched anchor k*, -1 where none (all three are then NaN).
        by: ``user`` takes the mean over the user's anchors; anything else takes that of k*.
    """
    matched = anchor >= 0
    dispersion_N = np.where(matched, found.dispersion[user], np.nan)
    if by == "user":
        history_U, llm_U = _user_means(found.history, anchors), _user_means(found.llm, anchors)
        history_N, llm_N = history_U[user], llm_U[user]
    else:
        history_N = _take(found.history, anchor)
        llm_N = _take(found.llm, anchor)
    history_N = np.where(matched, history_N, np.nan)
    llm_N = np.where(matched, llm_N, np.nan)
    as_float = np.float32
    return dispersion_N.astype(as_float), history_N.astype(as_float), llm_N.astype(as_float)


def _take(values: FloatArray, index: TimeArray) -> FloatArray:
    return np.append(values, np.float32(np.nan))[index]


def _user_means(values: FloatArray, anchors: InterestAnchors) -> FloatArray:
    """Return (U,) mean over a user's anchors that have a value; NaN where none has."""
    known = ~np.isnan(values)
    both = np.column_stack([np.where(known, values, 0), known]).astype(np.float32)
    sums = _group_sums(both, anchors.offsets)
    out = np.full(len(sums), np.nan)
    some = sums[:, 1] > 0
    out[some] = sums[some, 0] / sums[some, 1]
    return out.astype(np.float32)


def rank_normalised(values: FloatArray) -> NDArray[np.float64]:
    """Return the share of known values that are not above each value, in (0, 1].

    Equal values get equal ranks, so a factor that is the same everywhere is 1 everywhere and
    changes nothing; where nothing is known at all it is 1 as well. Missing values among known ones
    get the middle rank, .5.
    """
    known = ~np.isnan(values)
    if not known.any():
        return np.ones(len(values))
    rounded = np.round(values.astype(np.float64), DECIMALS)
    ordered = np.sort(rounded[known])
    share = np.searchsorted(ordered, rounded, side="right") / len(ordered)
    return np.where(known, share, NEUTRAL)


class RankTable:
    """`rank_normalised` of values that come in parts: how many lie at each of the grid's points."""

    def __init__(self) -> None:
        self._counts = np.zeros(2 * GRID + 1, np.int64)

    def add(self, values: FloatArray) -> None:
        """Count the known ones of ``values``, each in [-1, 1]."""
        known = values[~np.isnan(values)]
        self._counts += np.bincount(_on_grid(known), minlength=len(self._counts))

    def ranks(self, values: FloatArray) -> NDArray[np.float64]:
        """Return what `rank_normalised` would return for ``values`` among all that were added."""
        ends = np.cumsum(self._counts)
        if not ends[-1]:
            return np.ones(len(values))
        known = ~np.isnan(values)
        share = np.full(len(values), NEUTRAL)
        share[known] = ends[_on_grid(values[known])] / ends[-1]
        return share


def _on_grid(values: FloatArray) -> NDArray[np.int64]:
    """Return the grid point of each value; equal ones are equal when rounded to `DECIMALS`."""
    point = np.rint(values.astype(np.float64) * 10.0**DECIMALS).astype(np.int64)
    return np.asarray(np.clip(point, -GRID, GRID) + GRID, dtype=np.int64)


def weights(ranks: Sequence[NDArray[np.float64]], n: int, floor: float) -> NDArray[np.float64]:
    """Return (n,) the product of the factors' ranks, clipped to [floor, 1]."""
    weight = np.ones(n)
    for rank in ranks:
        weight = weight * rank
    return np.clip(weight, floor, 1)


def combine(parts: tuple[FloatArray, ...], labelled: NDArray[np.bool_], floor: float) -> FloatArray:
    """Return the confidence of each pair, (N,) float32, mean 1 over the labelled ones.

    Product of the rank-normalised factors, clipped to [floor, 1], divided by its mean; 0 where the
    pair abstains. No factor at all gives 1 everywhere.
    """
    ranks = [rank_normalised(part[labelled]) for part in parts]
    weight = weights(ranks, int(labelled.sum()), floor)
    confidence = np.zeros(len(labelled), dtype=np.float32)
    if len(weight):
        confidence[labelled] = weight / weight.mean()
    return confidence
