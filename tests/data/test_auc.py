import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from prerank.data.auc import auc, grouped_auc


def test_by_hand() -> None:
    # Pairs (clicked, not): .9>.5, .9>.1, .4<.5, .4>.1 -> 3 of 4.
    assert auc(np.array([1, 0, 1, 0]), np.array([0.9, 0.5, 0.4, 0.1])) == 3 / 4


def test_ties_count_half() -> None:
    assert auc(np.array([1, 0, 0]), np.array([2.0, 2.0, 1.0])) == 3 / 4
    assert auc(np.array([1, 0]), np.array([0.0, 0.0])) == 1 / 2


def test_one_class_or_nothing_is_nan() -> None:
    assert np.isnan(auc(np.array([1, 1]), np.array([0.0, 1.0])))
    assert np.isnan(auc(np.array([], dtype=np.int8), np.array([])))


def test_groups_by_hand_in_any_order() -> None:
    group = np.array([7, 3, 7, 3, 5])
    click = np.array([1, 1, 0, 0, 1])
    score = np.array([1.0, 1.0, 2.0, 0.0, 9.0])
    values, groups = grouped_auc(group, click, score)
    assert groups.tolist() == [3, 5, 7]
    np.testing.assert_array_equal(values, [1.0, np.nan, 0.0])


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(-2, 2)), min_size=1, max_size=60
    )
)
def test_equals_scikit_learn(rows: list[tuple[int, int, int]]) -> None:
    group, click, score = (np.array(column) for column in zip(*rows, strict=True))
    values, groups = grouped_auc(group, click, score)
    assert groups.tolist() == sorted(set(group.tolist()))
    for value, name in zip(values, groups, strict=True):
        own = group == name
        if len(set(click[own].tolist())) < 2:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(roc_auc_score(click[own], score[own]))
