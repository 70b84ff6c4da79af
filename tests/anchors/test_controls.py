import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prerank import artifacts as a
from prerank.anchors.buckets import anchors_of_leaves, bucket_vectors, trie_of
from prerank.anchors.controls import (
    history_anchors,
    join,
    popular_anchors,
    random_anchors,
    shuffled_anchors,
)
from prerank.errors import DataError

from .sid_world import dataset, random_codes, semantic_ids, unit_rows

SIZES = (2, 3)
CODES = np.array([[0, 1], [0, 1], [1, 2], [1, 0]], np.int32)
IDS = semantic_ids(CODES, SIZES, dim=2)
VECTORS = np.array([[1, 0], [0, 1], [0, 0], [0.6, 0.8]], np.float32)
SPACE = a.ItemEmbeddings(VECTORS)
DATA = dataset([[0, 1, 3], [], [1, 3, 2]], 4)


def test_bucket_vectors_by_hand() -> None:
    # Leaves: (0, 1) holds items 0 and 1; (1, 0) item 3; (1, 2) item 2, which has no content.
    vectors = bucket_vectors(trie_of(IDS, SPACE), SPACE)
    np.testing.assert_allclose(vectors, [[0.5**0.5, 0.5**0.5], [0.6, 0.8], [0, 0]], atol=1e-6)


def test_a_semantic_id_without_content_is_nobodys_anchor() -> None:
    trie = trie_of(IDS, SPACE)
    leaf_UA = np.array([[2, 1, 0], [2, -1, -1]])
    logprob_UA = np.array([[-1, -2, -3], [-1, 0, 0]], np.float32)
    anchors = anchors_of_leaves(leaf_UA, trie, bucket_vectors(trie, SPACE), "llm", logprob_UA)
    assert anchors.offsets.tolist() == [0, 2, 2]
    assert anchors.codes.tolist() == [[1, 0], [0, 1]] and anchors.logprob.tolist() == [-2, -3]


def test_anchors_of_one_leaf_share_a_point() -> None:
    trie = trie_of(IDS, SPACE)
    table = bucket_vectors(trie, SPACE)
    anchors = anchors_of_leaves(np.array([[1, 0], [0, -1]]), trie, table, "llm")
    assert anchors.points is table and anchors.point.tolist() == [1, 0, 0]
    assert anchors.point.dtype == np.int32
    everybody = popular_anchors(DATA, IDS, SPACE, 2)
    assert everybody.point[:2].tolist() == everybody.point[2:].tolist()


def test_history_is_most_recent_first_without_empty_items() -> None:
    anchors = history_anchors(DATA, IDS, SPACE, 2)
    assert anchors.offsets.tolist() == [0, 2, 2, 4]
    assert np.array_equal(anchors.vectors_of(slice(None)), VECTORS[[3, 1, 3, 1]])
    assert np.array_equal(anchors.codes, CODES[[3, 1, 3, 1]])
    assert anchors.logprob.tolist() == [0.0] * 4


def test_an_item_taken_several_times_is_one_anchor_where_it_was_last() -> None:
    anchors = history_anchors(dataset([[0, 1, 3, 1, 1], [3, 3], [], [0, 1, 0]], 4), IDS, SPACE, 2)
    assert anchors.offsets.tolist() == [0, 2, 3, 3, 5]
    assert np.array_equal(anchors.vectors_of(slice(None)), VECTORS[[1, 3, 3, 0, 1]])


def test_history_ends_before_the_cut() -> None:
    data = dataset([[0, 1, 3], [], [1, 3, 2]], 4, "ms", cut=1)
    anchors = history_anchors(data, IDS, SPACE, 2)
    assert np.array_equal(anchors.vectors_of(slice(None)), VECTORS[[0, 1]])


def test_history_of_sets_is_a_seeded_subset() -> None:
    data = dataset([list(range(30))], 30, "none")
    ids, space = semantic_ids(random_codes(30, SIZES), SIZES), unit_rows(30)
    drawn = [history_anchors(data, ids, space, 5, seed).point.tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] != list(range(29, 24, -1))


def test_random_draws_different_existing_semantic_ids() -> None:
    codes = random_codes(200, (9, 9, 9))
    ids, space = semantic_ids(codes, (9, 9, 9)), unit_rows(200)
    data = dataset([[0], [], [1, 2]], 200)
    anchors = random_anchors(data, ids, space, 10, 0)
    assert anchors.offsets.tolist() == [0, 10, 10, 20]
    first, second = (set(map(tuple, rows.tolist())) for rows in np.split(anchors.codes, 2))
    assert len(first) == len(second) == 10 and first != second
    assert first | second <= set(map(tuple, codes.tolist()))


def test_popular_is_the_same_for_all_and_most_frequent_first() -> None:
    anchors = popular_anchors(DATA, IDS, SPACE, 2)
    # Items 0, 1, 3, 1, 3, 2: (0, 1) three times, (1, 0) twice, (1, 2) once.
    assert anchors.codes.tolist() == [[0, 1], [1, 0]] * 2
    assert anchors.offsets.tolist() == [0, 2, 2, 4]
    assert len(popular_anchors(DATA, IDS, SPACE, 9).codes) == 4  # (1, 2) has no content


def llm(counts: list[int]) -> a.InterestAnchors:
    n = sum(counts)
    score = -np.arange(n, dtype=np.float32)
    codes = np.stack([np.arange(n), np.arange(n)], axis=1).astype(np.int32)
    offsets = np.cumsum([0, *counts]).astype(np.int64)
    point = np.arange(n, dtype=np.int32)
    return a.InterestAnchors(offsets, codes, point, unit_rows(n).vectors, score, score, "llm")


@settings(max_examples=50)
@given(counts=st.lists(st.integers(0, 3), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_shuffled_gives_everyone_another_users_anchors(counts: list[int], seed: int) -> None:
    original = llm(counts)
    moved = shuffled_anchors(original, seed)
    owner = original.users()[moved.codes[:, 0]]
    assert (owner != moved.users()).all()
    if sum(count > 0 for count in counts) > 1:
        assert sorted(moved.codes[:, 0].tolist()) == list(range(sum(counts)))
    assert (np.diff(moved.offsets)[np.array(counts) == 0] == 0).all()
    assert np.array_equal(moved.logprob, -moved.codes[:, 0].astype(np.float32))


def test_join_keeps_both_in_order() -> None:
    both = join(llm([1, 0, 2]), history_anchors(DATA, IDS, unit_rows(4), 1))
    assert both.source == "llm+history"
    assert both.offsets.tolist() == [0, 2, 2, 5]
    assert both.codes.tolist() == [[0, 0], [1, 0], [1, 1], [2, 2], [1, 2]]
    with pytest.raises(DataError, match="different users"):
        join(llm([1]), llm([1, 1]))


def test_join_keeps_the_points_of_each_and_one_table_where_they_share_it() -> None:
    one, other = llm([1, 0, 2]), history_anchors(DATA, IDS, unit_rows(4), 1)
    both = join(one, other)
    theirs = np.concatenate([one.vectors_of([0]), other.vectors_of([0]), one.vectors_of([1, 2])])
    assert np.array_equal(both.vectors_of([0, 1, 2, 3]), theirs)
    assert np.array_equal(both.vectors_of([4]), other.vectors_of([1]))
    assert len(both.points) == len(one.points) + len(other.points)
    again = join(other, history_anchors(DATA, IDS, unit_rows(4), 2))  # equal, but another array
    assert again.points is other.points and again.point.max() < 4
    popular = [popular_anchors(DATA, IDS, SPACE, n) for n in (1, 2)]
    assert join(*popular).points is popular[0].points
