from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prerank.artifacts import InterestAnchors, ItemEmbeddings
from prerank.labels import matching
from prerank.labels.matching import Pooling, match_pairs

POOLS = ("max", "top-m", "log-sum-exp", "probability-weighted")


def brute_force(user, item, embeddings, anchors, pooling):
    relevance, nearest = [], []
    for u, i in zip(user.tolist(), item.tolist(), strict=True):
        rows = np.arange(anchors.offsets[u], anchors.offsets[u + 1])
        e = embeddings.vectors[i].astype(np.float64)
        if not len(rows) or not e.any():
            relevance.append(np.nan)
            nearest.append(-1)
            continue
        cosine = anchors.vectors_of(rows).astype(np.float64) @ e
        nearest.append(int(rows[cosine.argmax()]))
        probability = np.exp(anchors.logprob[rows].astype(np.float64))
        exponential = np.exp(cosine / pooling.temperature)
        relevance.append(
            {
                "max": cosine.max(),
                "top-m": np.sort(cosine)[::-1][: pooling.top_m].mean(),
                "log-sum-exp": pooling.temperature * np.log(exponential.mean()),
                "probability-weighted": pooling.temperature
                * np.log((probability / probability.sum()) @ exponential),
            }[pooling.pool]
        )
    return np.array(relevance), np.array(nearest)


def random_case(rng, n_users=7, n_items=23, n_pairs=60, dim=6, most_anchors=9):
    def unit_rows(n):
        values = rng.standard_normal((n, dim))
        return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)

    count = rng.integers(0, most_anchors + 1, n_users)
    offsets = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
    n = int(offsets[-1])
    logprob = (-rng.random(n) * 4).astype(np.float32)
    points = unit_rows(n + 2)  # no two alike: ties would be broken by their order
    point = rng.permutation(len(points))[:n].astype(np.int32)
    codes = np.zeros((n, 3), np.int32)
    anchors = InterestAnchors(offsets, codes, point, points, logprob, logprob, "llm")
    vectors = unit_rows(n_items)
    vectors[0] = 0
    user = rng.integers(0, n_users, n_pairs).astype(np.int32)
    item = rng.integers(0, n_items, n_pairs).astype(np.int32)
    return user, item, ItemEmbeddings(vectors), anchors


def test_cosines_of_a_plane(make_anchors, in_plane):
    # Anchors at 0 and 90 degrees, item at 30: cosines sqrt(3)/2 and 1/2.
    anchors = make_anchors([in_plane([0, 90])], [np.log(0.3), np.log(0.1)])
    items = ItemEmbeddings(in_plane([30]))
    user = item = np.zeros(1, np.int32)
    near, far = np.sqrt(3) / 2, 0.5
    expected = {
        "max": near,
        "top-m": (near + far) / 2,
        "log-sum-exp": 0.2 * np.log((np.exp(near / 0.2) + np.exp(far / 0.2)) / 2),
        "probability-weighted": 0.2 * np.log(0.75 * np.exp(near / 0.2) + 0.25 * np.exp(far / 0.2)),
    }
    for pool in POOLS:
        found = match_pairs(user, item, items, anchors, Pooling(pool, top_m=2, temperature=0.2))
        assert found.relevance[0] == pytest.approx(expected[pool], abs=1e-6)
        assert found.anchor[0] == 0


def test_joined_history_holds_half_of_the_weight(make_anchors, in_plane):
    # Two anchors of the LLM at 0 and 90 degrees, one item read at 180; the item stands at 90.
    anchors = make_anchors([in_plane([0, 90, 180])], [np.log(0.3), np.log(0.1), 0.0])
    user = item = np.zeros(1, np.int32)
    pooling = Pooling("probability-weighted", temperature=1.0)
    found = match_pairs(user, item, ItemEmbeddings(in_plane([90])), anchors, pooling)
    expected = np.log(0.5 * (0.75 * np.exp(0) + 0.25 * np.exp(1)) + 0.5 * np.exp(0))
    assert found.relevance[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(("tile", "block"), [(1024, 2 << 20), (4, 512)])
def test_equals_brute_force(pool, tile, block, monkeypatch):
    monkeypatch.setattr(matching, "TILE", tile)
    monkeypatch.setattr(matching, "BLOCK_BYTES", block)
    pooling = Pooling(pool, top_m=3, temperature=0.2)
    for seed in range(5):
        case = random_case(np.random.default_rng(seed))
        found = match_pairs(*case, pooling)
        relevance, nearest = brute_force(*case, pooling)
        np.testing.assert_allclose(found.relevance, relevance, atol=1e-5)
        np.testing.assert_array_equal(found.anchor, nearest)


def test_no_anchors_and_no_content_match_nothing(make_anchors, in_plane):
    anchors = make_anchors([in_plane([0]), np.zeros((0, 2))])
    items = ItemEmbeddings(np.vstack([in_plane([0]), np.zeros((1, 2), np.float32)]))
    found = match_pairs(
        np.array([0, 0, 1], np.int32), np.array([0, 1, 0], np.int32), items, anchors
    )
    np.testing.assert_array_equal(found.anchor, [0, -1, -1])
    np.testing.assert_array_equal(np.isnan(found.relevance), [False, True, True])


def test_no_pairs_and_no_anchors_at_all(make_anchors, in_plane):
    items = ItemEmbeddings(in_plane([0]))
    none = np.zeros(0, np.int32)
    assert len(match_pairs(none, none, items, make_anchors([in_plane([0])])).relevance) == 0
    empty = make_anchors([np.zeros((0, 2)), np.zeros((0, 2))])
    found = match_pairs(np.array([1], np.int32), np.array([0], np.int32), items, empty)
    assert found.anchor.tolist() == [-1]


@given(seed=st.integers(0, 10_000), pool=st.sampled_from(POOLS))
@settings(max_examples=30)
def test_order_of_anchors_and_of_pairs_does_not_matter(seed, pool):
    rng = np.random.default_rng(seed)
    user, item, items, anchors = random_case(rng)
    plain = match_pairs(user, item, items, anchors, Pooling(pool))
    # Sorting random keys within users permutes each user's anchors.
    owner = np.repeat(np.arange(anchors.n_users), np.diff(anchors.offsets))
    order = np.lexsort((rng.random(len(owner)), owner))
    other = InterestAnchors(
        anchors.offsets,
        anchors.codes,
        anchors.point[order],
        anchors.points,
        anchors.logprob[order],
        anchors.logprob_legal[order],
        "llm",
    )
    rows = rng.permutation(len(user))
    found = match_pairs(user[rows], item[rows], items, other, Pooling(pool))
    np.testing.assert_allclose(found.relevance, plain.relevance[rows], atol=1e-5)
    matched = found.anchor >= 0
    np.testing.assert_array_equal(order[found.anchor[matched]], plain.anchor[rows][matched])


def test_probabilities_too_small_for_a_number_are_compared_all_the_same(make_anchors, in_plane):
    odds = np.log(3.0)
    anchors = make_anchors([in_plane([0, 90])], [-900.0, -900.0 - odds])
    np.testing.assert_allclose(matching._shares(anchors), [0.75, 0.25], atol=1e-4)


def test_same_input_same_bytes():
    case = random_case(np.random.default_rng(1))
    first, second = match_pairs(*case), match_pairs(*case)
    assert first.relevance.tobytes() == second.relevance.tobytes()


@pytest.mark.parametrize("at_once", [1, 7, 10**6])
def test_tasks_of_any_size_equal_brute_force(at_once, monkeypatch):
    monkeypatch.setattr(matching, "PAIRS_AT_ONCE", at_once)
    for pool in ("max", "probability-weighted"):
        case = random_case(np.random.default_rng(at_once))
        user, _, _, anchors = case
        pooling, sizes = Pooling(pool), []

        def counting(ready, tasks, sizes=sizes):
            sizes += [len(task["item"]) for task in tasks]
            assert all(values.ndim == 1 for task in tasks for values in task.values())  # no points
            work = ready()
            return [(n, work(task)) for n, task in reversed(list(enumerate(tasks)))]

        found = match_pairs(*case, pooling, counting)
        relevance, nearest = brute_force(*case, pooling)
        np.testing.assert_allclose(found.relevance, relevance, atol=1e-5)
        np.testing.assert_array_equal(found.anchor, nearest)
        most = np.bincount(user, minlength=anchors.n_users).max()
        assert sum(sizes) == len(user) and max(sizes) <= max(at_once, most)


def test_a_padded_column_on_top_stands_for_the_last_anchor():
    cosine_BCA = np.array([[[0.1, 0.5, np.nextafter(np.float32(0.5), np.float32(1))]]], np.float32)
    assert matching._nearest(cosine_BCA, np.array([2])).tolist() == [[1]]
    assert matching._nearest(cosine_BCA, np.array([3])).tolist() == [[2]]


def test_the_nearest_anchor_is_one_of_the_users_own():
    # A product may round equal columns differently; here the last anchor is the nearest of most.
    rng = np.random.default_rng(0)
    n_users, dim = 300, 64
    vectors = rng.normal(size=(n_users, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    count = rng.integers(1, 60, n_users)
    offsets = np.concatenate([[0], np.cumsum(count)])
    of_anchors = rng.normal(size=(offsets[-1], dim)).astype(np.float32)
    of_anchors /= np.linalg.norm(of_anchors, axis=1, keepdims=True)
    of_anchors[offsets[1:] - 1] = vectors
    nothing = np.zeros(offsets[-1], np.float32)
    codes = np.zeros((offsets[-1], 1), np.int32)
    point = np.arange(offsets[-1], dtype=np.int32)
    anchors = InterestAnchors(offsets, codes, point, of_anchors, nothing, nothing, "history")
    user = np.repeat(np.arange(n_users, dtype=np.int32), 40)
    found = match_pairs(user, user, ItemEmbeddings(vectors), anchors)
    assert found.anchor.tolist() == (offsets[1:] - 1)[user].tolist()
    np.testing.assert_allclose(found.relevance, 1, atol=1e-5)


def test_one_long_user_among_short_ones_pads_no_other():
    one, table = np.ones(3000, np.int64), np.zeros((1, 64), np.float32)
    count = one.copy()
    count[7] = 1000
    queries = matching.Groups(table, np.zeros(count.sum(), int), np.cumsum(count) - count, count)
    keys = matching.Groups(table, np.zeros(3000, int), np.arange(3000), one)
    blocks = list(matching._blocks(queries, keys))
    assert sum(int(block.query_count.sum()) for block in blocks) == 3999
    padded = [len(b.query_count) * int(b.query_count.max()) for b in blocks]
    assert max(padded) * 64 * 4 <= 2 * matching.BLOCK_BYTES
