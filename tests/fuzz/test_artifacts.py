"""Every invariant of the artifacts: what is taken is sound by a plain second reading, and the rest
is refused by name; what is taken comes back from disk as it was."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prerank import artifacts as a
from prerank import store
from prerank.errors import DataError
from prerank.vocabulary import Vocabulary

SOME = settings(
    max_examples=60 * int(os.environ.get("PRERANK_FUZZ", "1")),
    suppress_health_check=(HealthCheck.too_slow,),  # a busy machine is no failure
)
SMALL = st.integers(-2, 3)
REAL = st.sampled_from([-1.0, 0.0, 0.25, 1.0, 1.5, math.nan, math.inf])


def made(kind: Any, *parts: Any, **named: Any) -> Any:
    """Return the artifact; None where it is refused, and then by its name."""
    try:
        return kind(*parts, **named)
    except DataError as error:
        assert error.where and error.what and error.must
        return None


def column(values: Sequence[float], dtype: Any) -> Any:
    return np.array(values, dtype)


def unknown(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def rises(values: Sequence[int]) -> bool:
    return sorted(values) == list(values)


def ints(n: int, low: int = 0, high: int = 2) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(low, high), min_size=n, max_size=n)


def reals(n: int) -> st.SearchStrategy[list[float]]:
    return st.lists(REAL, min_size=n, max_size=n)


@SOME
@given(st.data())
def test_exposures(data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 4))
    click, split = data.draw(ints(n, -2, 2)), data.draw(ints(n, -1, 3))
    propensity, short = data.draw(reals(n)), data.draw(st.booleans()) and n > 0
    index = np.zeros(n, np.int32)
    found = made(
        a.Exposures,
        np.zeros(n - short, np.int64),
        index,
        index,
        np.zeros(n, np.int64),
        column(click, np.int8),
        index,
        column(propensity, np.float32),
        column(split, np.int8),
    )
    sound = not short and set(click) <= {-1, 0, 1} and set(split) <= {0, 1, 2}
    assert (found is not None) == (sound and all(0 < p <= 1 for p in unknown(propensity)))


@SOME
@given(st.data())
def test_candidates(data: st.DataObject) -> None:
    n, names = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 3))
    stage, truth = data.draw(ints(n, -1, 3)), data.draw(reals(n))
    index, long = np.zeros(n, np.int32), np.zeros(n, np.int64)
    found = made(
        a.Candidates,
        long,
        index,
        index,
        long,
        column(stage, np.int8),
        np.zeros(n, np.float32),
        column(truth, np.float32),
        tuple("abc"[:names]),
    )
    sound = all(0 <= s < names for s in stage) and all(0 <= t <= 1 for t in unknown(truth))
    assert (found is not None) == sound


@SOME
@given(st.data())
def test_interactions(data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 5))
    user, time = data.draw(ints(n)), data.draw(ints(n))
    found = made(
        a.Interactions, column(user, np.int32), np.zeros(n, np.int32), column(time, np.int64)
    )
    assert (found is not None) == rises(list(zip(user, time, strict=True)))  # type: ignore[arg-type]


@SOME
@given(st.data())
def test_pools(data: st.DataObject) -> None:
    n, names = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 2))
    pool, split, click = (data.draw(ints(n, -1, 2)) for _ in range(3))
    index, long = np.zeros(n, np.int32), np.zeros(n, np.int64)
    found = made(
        a.Pools,
        column(pool, np.int16),
        column(split, np.int8),
        long,
        index,
        index,
        long,
        column(click, np.int8),
        tuple("ab"[:names]),
    )
    sound = all(0 <= p < names for p in pool) and set(split) <= {1, 2} and set(click) <= {0, 1}
    assert (found is not None) == sound


@SOME
@given(st.data())
def test_features_and_lists(data: st.DataObject) -> None:
    n, names = 2, data.draw(st.integers(0, 2))
    offsets, values = data.draw(ints(n + 1, -1, 3)), data.draw(st.lists(SMALL, max_size=3))
    lists = made(a.CodeLists, column(offsets, np.int64), column(values, np.int32))
    assert (lists is not None) == (
        offsets[0] == 0 and rises(offsets) and offsets[-1] == len(values)
    )
    codes, numbers = data.draw(st.lists(SMALL, max_size=3)), data.draw(reals(n))
    vectors = np.array([data.draw(reals(2)) for _ in range(n)], np.float32)
    found = made(
        a.Features,
        n,
        {"c": column(codes, np.int32)},
        {"c": tuple("ab"[:names]), "l": tuple("ab"[:names])},
        {"n": column(numbers, np.float32)},
        {} if lists is None else {"l": lists},
        {"v": vectors},
    )
    sound = len(codes) == n and all(-1 <= c < names for c in codes)
    sound &= not any(map(math.isinf, numbers))
    sound &= lists is None or all(0 <= v < names for v in values)
    given_rows = [row for row in vectors.tolist() if unknown(row)]
    sound &= all(math.isfinite(v) for row in given_rows for v in row)
    assert (found is not None) == sound


@SOME
@given(st.lists(st.integers(1, 3), min_size=4, max_size=4))
def test_catalog(sizes: list[int]) -> None:
    title, text, vectors, image = sizes
    names = [np.array(["x"] * n, object) for n in (title, text, image)]
    found = made(
        a.Catalog, names[0], names[1], a.Features(text), np.zeros((vectors, 2), "f4"), names[2]
    )
    assert (found is not None) == (len(set(sizes)) == 1)


@SOME
@given(st.lists(st.lists(REAL, min_size=2, max_size=2), max_size=3), st.booleans())
def test_item_embeddings(rows: list[list[float]], double: bool) -> None:
    vectors = np.array(rows, "f8" if double else "f4").reshape(-1, 2)
    found = made(a.ItemEmbeddings, vectors)
    unit = all(sum(v * v for v in row) in (0.0, 1.0) for row in rows)  # of the values drawn
    assert (found is not None) == (unit and not double)
    if found is not None:
        np.testing.assert_array_equal(_again(found).vectors, vectors)


@SOME
@given(st.data())
def test_interest_anchors(data: st.DataObject) -> None:
    n, offsets = data.draw(st.integers(0, 3)), data.draw(st.lists(st.integers(0, 3), max_size=4))
    logprob, legal = data.draw(reals(n)), data.draw(reals(n))
    rows = data.draw(st.integers(max(0, n - 1), n))
    point, n_points = data.draw(ints(n, -1, 2)), data.draw(st.integers(0, 3))
    found = made(
        a.InterestAnchors,
        column(offsets, np.int64),
        np.zeros((rows, 2), np.int32),
        column(point, np.int32),
        np.zeros((n_points, 3), np.float32),
        column(logprob, np.float32),
        column(legal, np.float32),
        "llm",
    )
    sound = bool(offsets) and offsets[0] == 0 and rises(offsets) and offsets[-1] == n
    sound &= all(0 <= place < n_points for place in point)
    assert (found is not None) == (sound and rows == n and all(p <= 0 for p in [*logprob, *legal]))
    if found is not None:
        again = _again(found)
        np.testing.assert_array_equal(again.offsets, found.offsets)
        np.testing.assert_array_equal(again.logprob, found.logprob)
        np.testing.assert_array_equal(np.diff(again.first(1).offsets), np.diff(offsets) > 0)


@SOME
@given(st.data())
def test_pseudo_labels(data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 4))
    user, item = data.draw(ints(n, -1, 2)), data.draw(ints(n, -1, 2))
    label, confidence = data.draw(reals(n)), data.draw(reals(n))
    nothing = np.full(n, np.nan, np.float32)
    found = made(
        a.PseudoLabels,
        column(user, np.int32),
        column(item, np.int32),
        np.zeros(n, np.int64),
        column(label, np.float32),
        column(confidence, np.float32),
        nothing,
        np.full(n, -1, np.int64),
        *(nothing,) * 3,
    )
    pairs = list(zip(user, item, strict=True))
    sound = min([*user, *item], default=0) >= 0 and len(set(pairs)) == n
    sound &= all(0 <= value <= 1 for value in label)
    assert (found is not None) == (sound and all(0 <= w < math.inf for w in confidence))
    if found is not None:
        for name, values in _again(found).columns().items():
            np.testing.assert_array_equal(values, getattr(found, name))


@SOME
@given(st.data())
def test_dataset(data: st.DataObject) -> None:
    n, unit = data.draw(st.integers(0, 3)), data.draw(st.sampled_from(["ms", "order", "none"]))
    user, item, time = data.draw(ints(n, -1, 2)), data.draw(ints(n, -1, 2)), data.draw(ints(n))
    split, cuts = data.draw(ints(n)), data.draw(st.tuples(*[st.none() | st.integers(0, 3)] * 2))
    index, long, real = np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.float32)
    byte, names = np.zeros(0, np.int8), np.array(["x", "y"], object)
    log = a.Exposures(
        np.zeros(n, np.int64),
        column(user, np.int32),
        column(item, np.int32),
        column(time, np.int64),
        np.zeros(n, np.int8),
        np.zeros(n, np.int32),
        np.ones(n, np.float32),
        column(split, np.int8),
    )
    found = made(
        a.Dataset,
        "any",
        unit,
        Vocabulary.of(["u", "v"]),
        Vocabulary.of(["x", "y"]),
        a.Features(2),
        a.Catalog(names, names, a.Features(2)),
        log,
        a.Candidates(long, index, index, long, byte, real, real),
        a.Interactions(index, index, long),
        a.Pools(np.zeros(0, np.int16), byte, long, index, index, long, byte),
        a.Cuts(0, *cuts),
    )
    sound = all(0 <= value < 2 for value in [*user, *item])
    if unit == "ms":  # no fact of a split may lie at or after the cut that ends it
        for borders, cut in (((a.TRAIN,), cuts[0]), ((a.TRAIN, a.VALIDATION), cuts[1])):
            early = [t for t, s in zip(time, split, strict=True) if s in borders]
            sound &= cut is None or all(t < cut for t in early)
    assert (found is not None) == sound


def _again(artifact: Any) -> Any:
    """Return what is read where the artifact was written."""
    with tempfile.TemporaryDirectory() as folder:
        store.save(Path(folder), artifact)
        return store.load(Path(folder), type(artifact))
