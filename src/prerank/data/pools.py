"""The pools to evaluate on: rows of one (pool, request) are ranked against each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import (
    TEST,
    TRAIN,
    UNKNOWN_CLICK,
    VALIDATION,
    ByteArray,
    Exposures,
    Interactions,
    Pools,
    TimeArray,
)
from prerank.data.config import PoolsConfig
from prerank.data.negatives import with_negatives
from prerank.data.unexposed import contains, pair_keys, sorted_unique
from prerank.seeds import rng

Columns = dict[str, NDArray[Any]]
ROW_COLUMNS = ("split", "request", "user", "item", "time", "click")


def exposed_rows(exposures: Exposures) -> Columns:
    """Return the held-out exposures whose click is known: the pool `exposed`, whole."""
    held = (exposures.split != TRAIN) & (exposures.click != UNKNOWN_CLICK)
    return {name: getattr(exposures, name)[held] for name in ROW_COLUMNS}


def positives_of(exposures: Exposures, interactions: Interactions) -> tuple[Columns, int]:
    """Return the clicked held-out exposures that sampled pools are built from, and the others.

    The others, counted only, are of items that the user had met: in an earlier period's exposure,
    or an earlier interaction. Drawn items are unmet, so having met an item would tell the click.
    """
    key, split = pair_keys(exposures.user, exposures.item), exposures.split
    held = np.flatnonzero((split != TRAIN) & (exposures.click == 1))
    trained, validated = (sorted_unique(key[split == part]) for part in (TRAIN, VALIDATION))
    known = contains(trained, key[held])
    known |= (split[held] == TEST) & contains(validated, key[held])
    known |= _interacted(interactions, key[held], exposures.time[held])
    fresh = held[~known]
    columns = {name: getattr(exposures, name)[fresh] for name in ("split", "user", "item", "time")}
    return columns, int(known.sum())


def _interacted(interactions: Interactions, key: TimeArray, time: TimeArray) -> NDArray[np.bool_]:
    """Say which pairs (N,) are an interaction before the moment beside each."""
    theirs = pair_keys(interactions.user, interactions.item)
    order = np.lexsort((interactions.time, theirs))
    theirs, first = theirs[order], interactions.time[order]
    if not len(theirs):
        return np.zeros(len(key), dtype=np.bool_)
    place = np.minimum(np.searchsorted(theirs, key), len(theirs) - 1)
    found: NDArray[np.bool_] = (theirs[place] == key) & (first[place] < time)
    return found


def picked_requests(
    split: ByteArray, config: PoolsConfig, seed: int
) -> list[tuple[int, NDArray[np.int64]]]:
    """Return each held-out split and the clicked rows (of ``split``) that its pools are made of.

    One draw for all pools, so that they judge the same requests.
    """
    found = []
    for code, limit in ((VALIDATION, config.max_validation_requests), (TEST, config.max_requests)):
        index = np.flatnonzero(split == code)
        found.append((code, np.sort(rng(seed, "pools", code).permutation(index)[:limit])))
    return found


def sampled_rows(
    name: str,
    positives: Columns,
    met: TimeArray,
    weights: NDArray[np.float64],
    config: PoolsConfig,
    seed: int,
) -> Columns:
    """Return a sampled pool: every clicked item beside items its user never met.

    The negatives are assumed: nobody asked the user. A clicked item whose user has met all others
    has nothing to be ranked against, and is left out. At most ``max_requests`` test and
    ``max_validation_requests`` validation requests are kept, drawn by ``seed``.

    Args:
        name: name of the pool, which also names its random numbers.
        positives: ``split`` (N,) int8, ``user``, ``item`` (N,) int32, ``time`` (N,) int64.
        met: sorted unique pair keys that must not be drawn.
        weights: (I,) probabilities of the negatives.
        config: sizes.
        seed: root seed.

    Returns:
        The columns of a pool; a request is one positive.
    """
    parts = []
    for code, index in picked_requests(positives["split"], config, seed):
        picked = {key: values[index] for key, values in positives.items()} | {"request": index}
        generator = rng(seed, "pools", name, code)
        rows = with_negatives(picked, met, weights, config.n_negatives, generator)
        against = np.bincount(rows["row"], minlength=len(index)) > 1
        parts.append({key: values[against[rows["row"]]] for key, values in rows.items()})
    return {key: np.concatenate([part[key] for part in parts]) for key in ROW_COLUMNS}


def join_pools(parts: Sequence[tuple[str, Columns]]) -> Pools:
    """Join named pools into one table; a pool without rows keeps its name."""
    names = tuple(name for name, _ in parts)
    code = [np.full(len(rows["user"]), n, np.int16) for n, (_, rows) in enumerate(parts)]
    kinds = {"split": np.int8, "user": np.int32, "item": np.int32, "click": np.int8}

    def column(name: str) -> NDArray[Any]:
        kind = kinds.get(name, np.int64)
        values = [rows[name].astype(kind) for _, rows in parts]
        return np.concatenate(values) if values else np.zeros(0, dtype=kind)

    pool = np.concatenate(code) if code else np.zeros(0, dtype=np.int16)
    return Pools(pool=pool, **{name: column(name) for name in ROW_COLUMNS}, pools=names)
