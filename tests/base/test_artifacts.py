"""Invariants of the typed artifacts, each broken once."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from prerank import artifacts as a
from prerank.errors import ArtifactError, DataError
from prerank.serving.card import cell
from tiny import anchors, dataset, labels


def test_a_sound_dataset_passes() -> None:
    assert len(dataset().users) == 3


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("exposures", {"click": [2, 0, 1, 0, -1]}, "click out of range"),
        ("exposures", {"split": [0, 0, 0, 0, 3]}, "split out of range"),
        ("exposures", {"propensity": [0.0, 1, 1, 1, 1]}, "propensity out of range"),
        ("exposures", {"user": [0, 0, 1, 1]}, "differ in length"),
        ("candidates", {"stage": [0, 0, 0, 0, 0, 9]}, "stage out of range"),
        ("interactions", {"user": [1, 0, 2]}, "not sorted by user"),
        ("interactions", {"user": [0, 0, 2], "time": [9, 1, 1]}, "not sorted by time"),
        ("pools", {"click": [-1, 0, 0]}, "truth must be known"),
        ("pools", {"split": [0, 2, 2]}, "must not be training"),
    ],
)
def test_broken_table_is_refused(table: str, change: dict[str, Any], message: str) -> None:
    sound = getattr(dataset(), table)
    typed = {k: np.array(v, getattr(sound, k).dtype) for k, v in change.items()}
    with pytest.raises(DataError, match=message):
        replace(sound, **typed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: {"exposures": replace(d.exposures, item=np.full(5, 99, np.int32))},
            "item index out of range",
        ),
        (lambda d: {"cuts": a.Cuts(0, 25, 60)}, "training exposures reach into validation"),
        (lambda d: {"cuts": a.Cuts(0, 35, 38)}, "validation exposures reach into test"),
    ],
)
def test_dataset_checks_indices_and_leaks(
    change: Callable[[a.Dataset], dict[str, Any]], message: str
) -> None:
    sound = dataset()
    with pytest.raises(DataError, match=message):
        replace(sound, **change(sound))


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[np.nan, 1.0]], "NaN"),
        ([[2.0, 0.0]], "unit rows"),
        ([1.0, 0.0], r"\(I, D\)"),
    ],
)
def test_item_embeddings_must_be_finite_unit_rows(vectors: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        a.ItemEmbeddings(np.array(vectors, np.float32))


def test_item_without_content_has_a_zero_row() -> None:
    assert len(a.ItemEmbeddings(np.array([[1, 0], [0, 0]], np.float32)).vectors) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": np.array([0, 2, 1, 3])}, "must not fall"),
        ({"offsets": np.array([1, 2, 3, 3])}, "start at 0"),
        ({"offsets": np.array([0, 1, 1, 2])}, "end at the number"),
        ({"logprob": np.array([0.1, 0, 0], np.float32)}, "logprob above 0"),
        ({"point": np.array([0, 3, 1], np.int32)}, "point out of range"),
        ({"point": np.array([0, -1, 1], np.int32)}, "point out of range"),
        ({"points": np.zeros((0, 2), np.float32)}, "point out of range"),
        ({"points": np.ones(3, np.float32)}, r"must be \(A, L\) and \(P, D\)"),
    ],
)
def test_broken_anchors_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(anchors(), **change)


def test_anchor_users_follow_offsets() -> None:
    assert anchors().users().tolist() == [0, 0, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": [1.5, 0]}, "label out of range"),
        ({"confidence": [-1, 0]}, "below 0"),
        ({"confidence": [np.inf, 0]}, "not finite"),
        ({"user": [0, 0], "item": [1, 1]}, "pair twice"),
    ],
)
def test_broken_labels_are_refused(change: dict[str, Any], message: str) -> None:
    sound = labels()
    typed = {k: np.array(v, getattr(sound, k).dtype) for k, v in change.items()}
    with pytest.raises(DataError, match=message):
        replace(sound, **typed)


def test_semantic_id_codes_must_be_in_range() -> None:
    with pytest.raises(DataError, match="code out of range"):
        a.SemanticIds(
            np.array([[2]], np.int32), np.array([2], np.int32), np.zeros((2, 2), np.float32)
        )


def test_null_record_needs_a_reason() -> None:
    with pytest.raises(ArtifactError, match="needs a reason"):
        a.Record("m", "p", "all", "auc", None, None, None, 0, 1)


def test_few_users_have_no_interval() -> None:
    record = a.Record("gpl", "all", "tail", "gauc", 0.6, 0.5, 0.7, a.LEAST_USERS, 3)
    assert record.interval == (0.5, 0.7)
    assert replace(record, n=a.LEAST_USERS - 1).interval is None
    assert replace(record, low=None, high=None).interval is None
    assert cell(record) == "0.6000 [0.5000, 0.7000]"
    assert cell(replace(record, n=a.LEAST_USERS - 1)) == "0.6000"


def test_first_anchors_are_the_best_of_each_user() -> None:
    few = anchors().first(1)  # users with 2, 0 and 1 anchors
    assert few.offsets.tolist() == [0, 1, 1, 2]
    assert few.codes.tolist() == [[0, 1], [1, 1]]
    assert few.logprob.tolist() == [np.float32(-0.1), np.float32(-0.3)]
    assert few.point.tolist() == [0, 2]
    assert anchors().first(5).offsets.tolist() == [0, 2, 2, 3]


def test_only_some_anchors_and_only_the_points_that_they_name() -> None:
    some = anchors().only(np.array([False, True, True]))
    assert some.offsets.tolist() == [0, 1, 1, 2]
    assert some.point.tolist() == [1, 2] and some.codes.tolist() == [[1, 0], [1, 1]]
    small = some.compact()
    assert small.point.tolist() == [0, 1] and len(small.points) == 2
    assert small.vectors_of(slice(None)).tolist() == some.vectors_of(slice(None)).tolist()
    assert small.compact() is small


@pytest.mark.parametrize("most", [1, 2, 5, 100])
def test_anchors_are_gathered_user_by_user(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(a, "GATHERED_ROWS", most)
    rng, count = np.random.default_rng(0), np.array([0, 3, 0, 0, 1, 7, 2, 0])
    n = int(count.sum())
    some = replace(
        anchors(),
        offsets=np.append(0, np.cumsum(count)),
        codes=np.zeros((n, 2), np.int32),
        point=rng.integers(0, 3, n).astype(np.int32),
        logprob=np.zeros(n, np.float32),
        logprob_legal=np.zeros(n, np.float32),
    )
    users, vectors, offsets = zip(*some.by_users(), strict=True)
    assert [user for one in users for user in range(one.start, one.stop)] == list(range(8))
    assert np.concatenate([np.diff(one) for one in offsets]).tolist() == count.tolist()
    assert np.array_equal(np.concatenate(vectors), some.points[some.point])
    assert all(len(v) <= most or len(o) == 2 for v, o in zip(vectors, offsets, strict=True))


def test_rows_of_lists_end_to_end() -> None:
    place, offsets = a.places_of(np.array([0, 2, 2, 5]), np.array([2, -1, 1, 0, 2]))
    assert place.tolist() == [2, 3, 4, 0, 1, 2, 3, 4]
    assert offsets.tolist() == [0, 3, 3, 3, 5, 8]


def test_features_of_some_rows() -> None:
    lists = a.CodeLists(np.array([0, 2, 2, 5]), np.array([0, 1, 2, 1, 0], np.int32), ordered=True)
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    whole = a.Features(
        3, {}, {"genres": ("a", "b", "c")}, {}, {"genres": lists}, {"given": vectors}
    )
    some = whole.take(np.array([2, 0]))
    assert some.lists["genres"].offsets.tolist() == [0, 3, 5]
    assert some.lists["genres"].codes.tolist() == [2, 1, 0, 0, 1]
    assert some.lists["genres"].ordered and some.categories == whole.categories
    assert some.vectors["given"].tolist() == [[4, 5], [0, 1]]
    assert len(whole.take(np.zeros(0, np.int64)).lists["genres"]) == 0
