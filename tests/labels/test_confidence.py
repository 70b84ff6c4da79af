from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from prerank import artifacts
from prerank.artifacts import ItemEmbeddings
from prerank.labels.confidence import (
    Factors,
    combine,
    dispersion,
    factors,
    history_closeness,
    llm_probability,
    of_pairs,
    rank_normalised,
)


def test_dispersion_by_hand(make_anchors, in_plane):
    # 0, 60, 120 degrees: cosines 1/2, 1/2, -1/2, mean 1/6. One or no anchor: nothing to tell.
    anchors = make_anchors([in_plane([0, 60, 120]), np.zeros((0, 2)), in_plane([10])])
    np.testing.assert_allclose(dispersion(anchors), [1 / 6, np.nan, np.nan], atol=1e-6)


def test_dispersion_equals_all_pairs(make_anchors):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((12, 5))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = rows @ rows.T
    expected = cosine[~np.eye(12, dtype=bool)].mean()
    assert dispersion(make_anchors([rows]))[0] == pytest.approx(expected, abs=1e-6)


def test_dispersion_does_not_depend_on_how_many_anchors_are_gathered(make_anchors, monkeypatch):
    rng = np.random.default_rng(0)
    anchors = make_anchors([rng.standard_normal((n, 32)) for n in (40, 0, 1, 17, 2, 130)])
    whole = dispersion(anchors)
    for most in (1, 20, 60):
        monkeypatch.setattr(artifacts, "GATHERED_ROWS", most)
        assert dispersion(anchors).tobytes() == whole.tobytes()


def test_history_and_llm_by_hand(make_dataset, make_anchors, in_plane):
    # User 0 has items at 0 and 90 degrees; anchors at 30 and 80. User 1 has no history.
    dataset = make_dataset(2, 2, exposed=[], candidates=[], interactions=[(0, 0), (0, 1)])
    items = ItemEmbeddings(in_plane([0, 90]))
    anchors = make_anchors([in_plane([30, 80]), in_plane([0])], [-3.0, 0.0, -6.0])
    found = factors(dataset, items, anchors, history_length=10)
    expected = [np.cos(np.deg2rad(30)), np.cos(np.deg2rad(10)), np.nan]
    np.testing.assert_allclose(found.history, expected, atol=1e-6)
    # Three levels: exp(-3 / 3), unspoken (logprob exactly 0), exp(-6 / 3).
    np.testing.assert_allclose(found.llm, [np.exp(-1), np.nan, np.exp(-2)], atol=1e-6)


def test_history_is_cut_to_the_most_recent(make_dataset, make_anchors, in_plane):
    dataset = make_dataset(
        1,
        2,
        exposed=[],
        candidates=[],
        interactions=[(0, 0), (0, 1)],
        interaction_time=[1, 2],
        time_unit="order",
    )
    items = ItemEmbeddings(in_plane([0, 90]))
    found = history_closeness(dataset, items, make_anchors([in_plane([0])]), 1)
    assert found[0] == pytest.approx(0, abs=1e-6)


def test_a_history_without_content_is_unknown_and_not_far(make_dataset, make_anchors, in_plane):
    # User 0 has nothing but item 2, which has no content; user 1 has item 1 before it.
    past = [(0, 2), (1, 1), (1, 2)]
    dataset = make_dataset(
        2,
        3,
        exposed=[],
        candidates=[],
        interactions=past,
        interaction_time=[1, 1, 2],
        time_unit="order",
    )
    items = ItemEmbeddings(np.vstack([in_plane([0, 90]), np.zeros((1, 2), np.float32)]))
    anchors = make_anchors([in_plane([0]), in_plane([80])])
    found = history_closeness(dataset, items, anchors, 1)
    np.testing.assert_allclose(found, [np.nan, np.cos(np.deg2rad(10))], atol=1e-6)


def test_pair_and_user_level(make_anchors, in_plane):
    anchors = make_anchors([in_plane([0, 90]), in_plane([0])], [-1.0, 0.0, 0.0])
    found = Factors(
        dispersion=np.array([0.25, np.nan], np.float32),
        history=np.array([0.2, 0.6, 0.9], np.float32),
        llm=np.array([0.5, np.nan, np.nan], np.float32),
    )
    user, anchor = np.array([0, 0, 0, 1], np.int32), np.array([0, 1, -1, 2])
    nan = np.nan
    by_pair = of_pairs(found, anchors, user, anchor, "pair")
    by_user = of_pairs(found, anchors, user, anchor, "user")
    np.testing.assert_allclose(by_pair[0], [0.25, 0.25, nan, nan])
    np.testing.assert_allclose(by_pair[1], [0.2, 0.6, nan, 0.9], rtol=1e-6)
    np.testing.assert_allclose(by_pair[2], [0.5, nan, nan, nan])
    np.testing.assert_allclose(by_user[1], [0.4, 0.4, nan, 0.9], rtol=1e-6)
    np.testing.assert_allclose(by_user[2], [0.5, 0.5, nan, nan])
    assert np.isnan(llm_probability(anchors)[1])


def test_rank_normalised_by_hand():
    values = np.array([0.1, 0.3, 0.3, 0.9, np.nan], np.float32)
    np.testing.assert_allclose(rank_normalised(values), [1 / 4, 3 / 4, 3 / 4, 1, 0.5])


@pytest.mark.parametrize("value", [np.nan, 1.0])
def test_a_constant_factor_changes_nothing(value):
    other = np.array([0.1, 0.5, 0.9], np.float32)
    constant = np.full(3, value, np.float32) + np.array([0, 1e-7, -1e-7], np.float32)
    labelled = np.ones(3, bool)
    np.testing.assert_array_equal(
        combine((other, constant), labelled, 0.1), combine((other,), labelled, 0.1)
    )


def test_combined_by_hand():
    # Ranks 1/2 and 1 in both factors: products 1/4 and 1; the floor lifts 1/4 to 1/2, mean 3/4.
    part = np.array([1, 2, 7], np.float32)
    labelled = np.array([True, True, False])
    np.testing.assert_allclose(combine((part, part), labelled, 0.5), [2 / 3, 4 / 3, 0])


@given(
    parts=npst.arrays(np.float32, (3, 20), elements=st.floats(0, 1, width=32)),
    labelled=npst.arrays(np.bool_, 20),
    floor=st.floats(0.01, 1),
)
@settings(max_examples=60)
def test_mean_one_over_the_labelled(parts, labelled, floor):
    weight = combine(tuple(parts), labelled, floor)
    assert (weight[~labelled] == 0).all()
    if labelled.any():
        assert weight[labelled].mean() == pytest.approx(1, rel=1e-5)
        # The least weight is at least the floor of the greatest.
        assert weight[labelled].min() >= floor * weight[labelled].max() * (1 - 1e-5)
