"""The unexposed pairs D_u, and how often each item was exposed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import (
    TRAIN,
    UNKNOWN_CLICK,
    Cuts,
    Dataset,
    FloatArray,
    IntArray,
    Table,
    TimeArray,
)

Whole = TypeVar("Whole", np.int32, np.int64)


Beside = Literal["requests", "anchors", "training"]
"""Which exposures are D_e beside a D_u: those of requests that have logged candidates after the
anchor cut, those after the anchor cut (`unexposed_pairs` holds no request before it), or, where
pairs are proposed, those of all training."""


@dataclass(frozen=True, eq=False)
class UnexposedPairs(Table):
    """Recalled but unexposed pairs, each once, sorted by user then item.

    Attributes:
        user, item: (N,) int32.
        time: (N,) int64, of the pair's latest request.
        truth: (N,) float32, NaN where unknown; for audits and the true-label ceiling only.
    """

    user: IntArray
    item: IntArray
    time: TimeArray
    truth: FloatArray


def pair_keys(user: IntArray, item: IntArray) -> TimeArray:
    """Return (N,) int64, one number a (user, item) pair; sorts by user, then item."""
    return user.astype(np.int64) << 32 | item.astype(np.int64)


def pairs_of(keys: TimeArray) -> tuple[IntArray, IntArray]:
    """Return (N,) users and (N,) items of `pair_keys`."""
    return (keys >> 32).astype(np.int32), (keys & 0xFFFFFFFF).astype(np.int32)


def exposure_counts(dataset: Dataset) -> TimeArray:
    """Return (I,) int64: how often each item was exposed in training."""
    shown = dataset.exposures.item[dataset.exposures.split == TRAIN]
    return np.bincount(shown, minlength=len(dataset.items)).astype(np.int64)


def interaction_counts(dataset: Dataset) -> TimeArray:
    """Return (I,) int64: how often each item stands in the interactions of training."""
    item = dataset.interactions.item[in_training(dataset)]
    return np.bincount(item, minlength=len(dataset.items)).astype(np.int64)


def in_training(dataset: Dataset, moment: int | None = None) -> NDArray[np.bool_]:
    """Return (N,) bool: the interactions before ``moment``, by default the first held-out period.

    All of them without time or cuts: there `prepare` has left the held-out ones out.
    """
    moment = after_training(dataset) if moment is None else moment
    interactions, timeless = dataset.interactions, dataset.time_unit == "none"
    known: NDArray[np.bool_] = timeless | (interactions.time < moment)
    return known


def known_in_training(dataset: Dataset, moment: int) -> TimeArray:
    """Return the sorted unique keys of pairs exposed in training or interacted before ``moment``.

    They are no D_u. Held-out exposures are left in on purpose: leaving out the test's would tell
    training which pairs the test holds, and leaving out validation's alone would make a weight,
    prior or step chosen there one for a target that leaked.
    """
    seen, interactions = dataset.exposures.split == TRAIN, dataset.interactions
    early = in_training(dataset, moment)
    exposed = pair_keys(dataset.exposures.user[seen], dataset.exposures.item[seen])
    interacted = pair_keys(interactions.user[early], interactions.item[early])
    return sorted_unique(np.concatenate([exposed, interacted]))


def after_anchors(dataset: Dataset, time: TimeArray) -> NDArray[np.bool_]:
    """Say which moments (N,) the anchors have not seen: from their cut on; all where none is."""
    cut = dataset.cuts.anchors
    if cut is None or dataset.time_unit == "none":
        return np.ones(len(time), dtype=np.bool_)
    late: NDArray[np.bool_] = time >= cut
    return late


def recalled_exposures(dataset: Dataset, beside: Beside) -> NDArray[np.bool_]:
    """Say which exposures (N,) are D_e, as ``beside`` says: of training, with a known click."""
    rows = dataset.exposures
    shown: NDArray[np.bool_] = (rows.split == TRAIN) & (rows.click != UNKNOWN_CLICK)
    if beside == "requests":
        late = after_anchors(dataset, dataset.candidates.time)
        shown &= contains(sorted_unique(dataset.candidates.request[late]), rows.request)
    return shown if beside == "training" else shown & after_anchors(dataset, rows.time)


def beside_logged(parts: Iterable[Dataset]) -> Beside:
    """Return which exposures stand beside the logged D_u of a dataset, or of all its parts.

    Candidates may be kept for some requests only: then those requests' exposures, where ids or
    moments tell which they are. No D_e may be empty.
    """
    ways: tuple[Beside, ...] = ("requests", "anchors")
    found = (way for way in ways if any(recalled_exposures(part, way).any() for part in parts))
    return next(found, "training")


def unexposed_pairs(dataset: Dataset) -> UnexposedPairs:
    """Return the logged candidates that training saw neither exposed nor interacted with.

    Candidates of requests before the anchor cut are dropped: anchors would know their future.
    """
    rows = dataset.candidates
    keep = after_anchors(dataset, rows.time)
    key = pair_keys(rows.user, rows.item)
    keep &= ~contains(known_in_training(dataset, after_training(dataset)), key)
    index = np.flatnonzero(keep)
    # Latest request of each pair: sort by (key, time), keep the last of each run.
    index = index[np.lexsort((rows.time[index], key[index]))]
    last = np.append(key[index][1:] != key[index][:-1], True) if len(index) else index.astype(bool)
    index = index[last]
    return UnexposedPairs(rows.user[index], rows.item[index], rows.time[index], rows.truth[index])


def propose_pairs(
    dataset: Dataset,
    n_per_user: int,
    power: float,
    rng: np.random.Generator,
    counts: TimeArray | None = None,
    moment: int | None = None,
) -> UnexposedPairs:
    """Draw unexposed pairs from a stated proposal distribution, for logs without candidates.

    ``n_per_user`` items a user with any interaction in training, drawn with probability
    proportional to (interactions + 1) ** power (0: uniform, .75: the usual one); pairs known in
    training and repeats are dropped, so a user may get fewer. Time is just after training.

    Where ``dataset`` is a part, ``counts`` are the interactions of the whole and ``moment`` is
    just after its training; parts in their order draw what the whole would draw.
    """
    counts = interaction_counts(dataset) if counts is None else counts
    moment = after_training(dataset) if moment is None else moment
    weight = (counts + 1.0) ** power
    active = sorted_unique(dataset.interactions.user[in_training(dataset, moment)])
    item = rng.choice(len(weight), size=(len(active), n_per_user), p=weight / weight.sum())
    key = sorted_unique(pair_keys(np.repeat(active, n_per_user), item.ravel().astype(np.int32)))
    key = key[~contains(known_in_training(dataset, moment), key)]
    user, item_of = pairs_of(key)
    return UnexposedPairs(
        user=user,
        item=item_of,
        time=np.full(len(key), moment, dtype=np.int64),
        truth=np.full(len(key), np.nan, dtype=np.float32),
    )


def after_training(dataset: Dataset) -> int:
    """Return a moment at which all histories of training count, 0 without time."""
    if dataset.time_unit == "none":
        return 0
    return earliest(int(dataset.interactions.time.max(initial=0)) + 1, dataset.cuts)


def earliest(moment: int, cuts: Cuts) -> int:
    """Return the earliest of a moment and the held-out periods' first ones."""
    return min([moment, *(cut for cut in (cuts.validation, cuts.test) if cut is not None)])


def contains(sorted_keys: TimeArray, keys: TimeArray) -> NDArray[np.bool_]:
    """Return (N,) bool: which ``keys`` stand in ``sorted_keys`` (ascending)."""
    if not len(sorted_keys):
        return np.zeros(len(keys), dtype=np.bool_)
    position = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    found: NDArray[np.bool_] = sorted_keys[position] == keys
    return found


def sorted_unique(keys: NDArray[Whole]) -> NDArray[Whole]:
    """Return the distinct ``keys``, ascending; by sorting, as hashing them is slower by far."""
    ordered = np.sort(keys)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered
