"""The anchor quality report by hand: four items, two of them in one bucket."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from prerank import artifacts as a
from prerank.anchors.quality import _leaves, anchor_quality, clicked_next, nearest_cosine

from .sid_world import dataset, semantic_ids

CODES = np.array([[0, 1], [0, 1], [1, 2], [1, 0]], np.int32)
IDS = semantic_ids(CODES, (2, 3), dim=2)
VECTORS = np.array([[1, 0], [0, 1], [0.6, 0.8], [-1, 0]], np.float32)
SPACE = a.ItemEmbeddings(VECTORS)


def approx(value: float) -> Any:
    return pytest.approx(value, abs=1e-6)  # the report is rounded


def data(clicks: list[tuple[int, int]]) -> a.Dataset:
    user, item = (np.array(column, np.int32) for column in zip(*clicks, strict=True))
    n = len(clicks)
    pools = a.Pools(
        pool=np.zeros(n, np.int16),
        split=np.full(n, a.VALIDATION, np.int8),
        request=np.arange(n, dtype=np.int64),
        user=user,
        item=item,
        time=np.zeros(n, np.int64),
        click=np.ones(n, np.int8),
    )
    return replace(dataset([[0, 0, 1], [2], []], 4), pools=pools)


# User 0 has the semantic IDs (0, 1) and (1, 0), user 1 has (1, 2), user 2 has none.
ANCHORS = a.InterestAnchors(
    offsets=np.array([0, 2, 3, 3], np.int64),
    codes=np.array([[0, 1], [1, 0], [1, 2]], np.int32),
    point=np.arange(3, dtype=np.int32),
    points=np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32),
    logprob=np.log(np.array([0.5, 0.25, 0.125], np.float32)),
    logprob_legal=np.zeros(3, np.float32),
    source="llm",
)


def test_report_by_hand() -> None:
    found = anchor_quality(ANCHORS, data([(0, 2), (0, 3), (1, 3), (2, 0)]), IDS, SPACE, 0)
    assert found["users"] == 2 and found["pairs"] == 4
    assert found["anchors_per_user"] == 1.5 and found["first_codes_per_user"] == 1.5
    assert found["probability_mass"] == approx((0.75 + 0.125) / 2)
    # Nearest: item 2 at .8 and item 3 at 0 for user 0; item 3 at -.6 for user 1; user 2 has none.
    assert found["cosine"] == approx((0.8 + 0.0 - 0.6) / 3)
    assert found["hit_rate"] == approx(1 / 3)  # (1, 0) is item 3 and an anchor of user 0
    # Interactions: (0, 1) three times, (1, 2) once, (1, 0) never: middle ranks 5/6, 1/2, 1/6.
    assert found["popularity"] == approx((5 / 6 + 1 / 6 + 1 / 2) / 3)
    assert found["log_popularity"] == approx((3 * 5 / 6 + 1 / 2) / 4)
    # Item frequencies 2, 1, 1, 0: only item 0 is above the fifth; it shares its bucket with item 1.
    assert found["long_tail"] == approx((0.5 + 1 + 1) / 3)
    assert found["log_long_tail"] == approx(2 / 4)
    assert set(found["beside"]) == {"history", "random", "popular"}
    assert found["beside"]["popular"]["probability_mass"] is None


def test_control_is_reported_alone() -> None:
    pairs = data([(0, 2), (0, 3), (1, 3), (2, 0)])
    history = replace(ANCHORS, source="history")
    found = anchor_quality(history, pairs, IDS, SPACE, 0)
    assert found["beside"] == {} and found["cosine"] == approx((0.8 + 0.0 - 0.6) / 3)


def test_history_is_read_and_not_next() -> None:
    user, item = clicked_next(data([(0, 0), (0, 2), (1, 2), (1, 1), (1, 1)]), 0)
    assert list(zip(user.tolist(), item.tolist(), strict=True)) == [(0, 2), (1, 1)]


def test_items_without_content_are_not_drawn_and_joined_history_has_no_mass() -> None:
    vectors = VECTORS.copy()
    vectors[1] = 0
    joined = replace(ANCHORS, logprob=np.log(np.array([0.5, 1, 0.125], np.float32)), source="a+b")
    pairs = [(0, 2), (0, 3), (1, 3)] * 20
    found = anchor_quality(joined, data(pairs), IDS, a.ItemEmbeddings(vectors), 0)
    assert -1 <= found["cosine_random_item"] <= 1
    assert found["probability_mass"] == approx((0.5 + 0.125) / 2)
    nothing = anchor_quality(ANCHORS, data(pairs), IDS, a.ItemEmbeddings(0 * VECTORS), 0)
    assert nothing["cosine"] is None and nothing["pairs"] == 0


def test_nothing_to_measure_is_null() -> None:
    nobody = replace(dataset([[], []], 4))
    none = replace(
        ANCHORS,
        offsets=np.zeros(3, np.int64),
        **{name: getattr(ANCHORS, name)[:0] for name in ("codes", "point", "logprob")},
        logprob_legal=np.zeros(0, np.float32),
    )
    found = anchor_quality(none, nobody, IDS, SPACE, 0)
    assert found["cosine"] is None and found["hit_rate"] is None and found["users"] == 0


def test_nearest_cosine_is_the_maximum_over_the_users_anchors() -> None:
    rng = np.random.default_rng(0)
    user, item = rng.integers(3, size=5000), rng.integers(4, size=5000)  # more than one chunk
    found = nearest_cosine(ANCHORS, VECTORS, user, item)
    for row in range(0, 5000, 97):
        rows = slice(ANCHORS.offsets[user[row]], ANCHORS.offsets[user[row] + 1])
        mine = ANCHORS.vectors_of(rows)
        expected = (mine @ VECTORS[item[row]]).max() if len(mine) else np.nan
        assert found[row] == pytest.approx(expected, nan_ok=True)


def test_buckets_are_found_where_no_integer_numbers_all_semantic_ids() -> None:
    rng = np.random.default_rng(0)
    codes = np.unique(rng.integers(0, 2**20, (50, 8)).astype(np.int32), axis=0)
    codes[:, :6] = codes[:1, :6]  # long common beginnings
    codes = np.unique(codes, axis=0)
    for chosen in rng.integers(len(codes), size=(30, 3)):
        anchors = replace(ANCHORS, codes=codes[chosen])
        np.testing.assert_array_equal(_leaves(anchors, codes), chosen)
