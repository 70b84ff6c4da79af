"""Encoding in shards: bounded memory, and a killed run goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import FloatArray, require
from prerank.embeddings.vectors import unit_rows
from prerank.progress import log, track
from prerank.spread import Arrays, Spread, here
from prerank.store import read_part, write_part, writing

Encode = Callable[[int, int], FloatArray]
"""(start, stop) -> (stop - start, D) float32: the vectors of these things, in their order."""


def encode_in_shards(
    load: Callable[[], Encode],
    n_things: int,
    thing_N: NDArray[np.int64],
    *,
    shard_items: int,
    title: str,
    work: Path | None,
    spread: Spread = here,
) -> FloatArray:
    """Encode ``n_things`` distinct things; return the unit row of each item's thing, (N, D).

    With a ``work`` folder, finished shards lie there (written aside, then renamed), a later call
    takes them as they are, and the result is a file mapped into memory, not memory. The folder
    must belong to these things and settings alone.

    Args:
        load: a function of a module with its arguments; loads the model, where there is work.
        spread: where shards are computed.
        thing_N: (N,) the thing of each item, -1 for an item without: its row is zeros.

    Raises:
        DataError: a vector is NaN or infinite.
        ArtifactError: the disk is full; finished shards are kept.
    """
    starts = range(0, n_things, shard_items)
    files = [_file(work, title, n) for n in range(len(starts))]
    order = np.argsort(thing_N, kind="stable")
    ordered = thing_N[order]
    out_ND: FloatArray | None = None
    shards = _shards(load, starts, files, n_things, title, spread)
    for start, shard_SD in track(shards, f"encode {title}", len(starts)):
        if out_ND is None:
            out_ND = _zeros((len(thing_N), shard_SD.shape[1]), title, work)
        low, high = np.searchsorted(ordered, [start, start + len(shard_SD)])
        out_ND[order[low:high]] = shard_SD[ordered[low:high] - start]
    if out_ND is None:
        raise ValueError("nothing to encode")  # the encoders refuse this before
    return out_ND


def _shards(
    load: Callable[[], Encode],
    starts: range,
    files: list[Path | None],
    n_things: int,
    title: str,
    spread: Spread,
) -> Iterator[tuple[int, FloatArray]]:
    """Yield start and vectors of every shard: those that stand, then those computed now."""
    left = []
    for start, file in zip(starts, files, strict=True):
        shard_SD = _read(file)
        if shard_SD is None:
            left.append((start, file))
        else:
            yield start, shard_SD
    if 0 < len(left) < len(starts):
        log(f"{title}: {len(starts) - len(left)} of {len(starts)} shards were done before")
    ends = [min(start + starts.step, n_things) for start, _ in left]
    tasks = [{"range": np.array([s, e])} for (s, _), e in zip(left, ends, strict=True)]
    for number, found in spread(partial(_ready, load), tasks):
        start, file = left[number]
        shard_SD = _checked(found["vectors"], title)
        _write(file, shard_SD)
        yield start, shard_SD


def _ready(load: Callable[[], Encode]) -> Callable[[Arrays], Arrays]:
    encode = load()
    return lambda task: {"vectors": encode(*task["range"].tolist())}


def forget(things: NDArray[np.int64], *, shard_items: int, title: str, work: Path | None) -> None:
    """Drop the finished shards that hold any of ``things`` (M,): the next call makes them again."""
    for number in np.unique(things // shard_items):
        file = _file(work, title, int(number))
        if file is not None:
            file.unlink(missing_ok=True)


def _file(work: Path | None, title: str, number: int) -> Path | None:
    return None if work is None else work / f"{title}-{number:05d}.safetensors"


def _checked(vectors: FloatArray, title: str) -> FloatArray:
    require(
        np.isfinite(vectors).all(),
        "the model gave vectors with NaN or infinity",
        where=f"encode {title}",
        must="finite numbers",
        got='try dtype = "float32"',
    )
    return unit_rows(vectors)


def _read(file: Path | None) -> FloatArray | None:
    """Return a finished shard, None if it is absent or damaged."""
    found = None if file is None else read_part(file)
    return None if found is None else found.get("vectors")


def _write(file: Path | None, vectors: FloatArray) -> None:
    if file is not None:
        write_part(file, {"vectors": vectors})


def _zeros(shape: tuple[int, int], title: str, work: Path | None) -> FloatArray:
    """Return zeros in memory, or in a file mapped into memory."""
    if work is None:
        return np.zeros(shape, dtype=np.float32)
    file = work / f"{title}-all.npy"
    with writing(file):
        return np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
