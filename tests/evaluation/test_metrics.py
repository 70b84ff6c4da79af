import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import ndcg_score, roc_auc_score

from prerank.evaluation import metrics
from prerank.evaluation.segments import HEAD, MID, TAIL, item_segments

ROW = st.tuples(st.integers(0, 3), st.integers(-3, 3), st.integers(0, 1))


def rank(score: list[float], request: list[int] | None = None) -> metrics.Ranking:
    groups = np.array(request if request is not None else [0] * len(score))
    return metrics.rank_rows(np.array(score, np.float32), groups, int(groups.max(initial=0)) + 1)


def yes(*values: int) -> NDArray[np.bool_]:
    return np.array(values, np.bool_)


def test_sort_rows_is_a_stable_sort_by_group_then_score() -> None:
    score = np.array([0.5, -1, 0.0, -0.0, 1e-30, -2, 0.5], np.float32)
    group = np.array([1, 0, 1, 1, 0, 1, 1])
    assert metrics.sort_rows(score).tolist() == [5, 1, 2, 3, 4, 0, 6]  # 0.0 and -0.0 tie
    assert metrics.sort_rows(score, group).tolist() == [1, 4, 5, 2, 3, 0, 6]


def test_ranking_counts_rows_above_and_tied() -> None:
    ranking = rank([1, 3, 3, 2, 9], [0, 0, 0, 0, 1])
    assert ranking.above.tolist() == [3, 0, 0, 2, 0]
    assert ranking.tied.tolist() == [1, 2, 2, 1, 1]
    assert ranking.in_top(1).tolist() == [0, 0.5, 0.5, 0, 1]


def test_user_auc_by_hand() -> None:
    user = np.array([0, 0, 0, 1, 1, 2])
    click = np.array([1, 0, 0, 1, 0, 1])
    score = np.array([2.0, 1.0, 2.0, 0.0, 5.0, 1.0])
    # user 0: beats one of two, ties with the other; user 1: loses; user 2: one class; 3: no rows
    order = metrics.sort_rows(score.astype(np.float32), user)
    found = metrics.user_auc(user, click, score, order, 4)
    np.testing.assert_allclose(found, [0.75, 0, np.nan, np.nan])


def test_hit_rate_by_hand() -> None:
    ranking = rank([5, 4, 3, 2, 1, 1], [0, 0, 0, 0, 1, 1])
    positive = yes(0, 1, 0, 1, 0, 0)
    np.testing.assert_allclose(metrics.hit_rate(ranking, positive, 1), [0, np.nan])
    np.testing.assert_allclose(metrics.hit_rate(ranking, positive, 2), [1 / 2, np.nan])
    # Positives 3, k 2: two hits are all one can have.
    three = metrics.hit_rate(rank([4, 3, 2, 1]), yes(1, 1, 0, 1), 2)
    assert three.tolist() == [1]


def test_a_request_that_any_order_serves_alike_has_no_value() -> None:
    for clicks, k in ((yes(0, 1), 2), (yes(0, 1), 10), (yes(1, 1), 1), (yes(0, 0), 1)):
        assert np.isnan(metrics.hit_rate(rank([3, 2]), clicks, k)).all()
    assert metrics.hit_rate(rank([3, 2]), yes(0, 1), 1).tolist() == [0]
    for clicks in (yes(1, 1), yes(0, 0)):
        assert np.isnan(metrics.ndcg(rank([3, 2]), clicks, 1)).all()
    # A list longer than the request still tells early places from late ones.
    assert metrics.ndcg(rank([3, 2]), yes(0, 1), 10)[0] == pytest.approx(1 / np.log2(3))


def test_ties_count_as_in_random_order() -> None:
    # Four tied rows, one positive: it stands in the top 3 with probability 3/4.
    assert metrics.hit_rate(rank([7, 7, 7, 7]), yes(0, 0, 1, 0), 3).tolist() == [0.75]
    # One row above three tied ones: one of them fills the second place.
    found = metrics.hit_rate(rank([9, 7, 7, 7]), yes(0, 1, 0, 0), 2)
    np.testing.assert_allclose(found, [1 / 3])


def test_ndcg_by_hand() -> None:
    # The positive stands third: 1 / log2(4) = 1/2 against 1 for the first place.
    np.testing.assert_allclose(metrics.ndcg(rank([3, 2, 1]), yes(0, 0, 1), 10), [0.5])
    assert metrics.ndcg(rank([3, 2, 1]), yes(0, 0, 1), 2).tolist() == [0]
    assert np.isnan(metrics.ndcg(rank([3, 2]), yes(0, 0), 2)).all()


def test_coverage_and_gini_by_hand() -> None:
    # Two requests, lists of one: items 0 and 0 of items 0, 1, 2.
    ranking = rank([2, 1, 2, 1], [0, 0, 1, 1])
    frequency, listed = metrics.list_frequency(ranking, np.array([0, 1, 0, 2]), 4, 1)
    assert frequency.tolist() == [2, 0, 0, 0]
    assert listed.tolist() == [1, 0, 0, 0]
    assert metrics.coverage(listed, yes(1, 1, 1, 0)) == pytest.approx(1 / 3)
    assert np.isnan(metrics.coverage(listed, yes(0, 0, 0, 0)))
    assert metrics.gini(frequency[:3]) == pytest.approx(2 / 3)  # one of three takes all
    assert metrics.gini(np.ones(5)) == pytest.approx(0)
    assert np.isnan(metrics.gini(np.zeros(3)))


def test_coverage_of_tied_lists_is_the_expected_one() -> None:
    # The same two tied items in two requests, lists of one: an item is missed with chance 1/4.
    ranking = rank([1, 1, 1, 1], [0, 0, 1, 1])
    frequency, listed = metrics.list_frequency(ranking, np.array([0, 1, 0, 1]), 2, 1)
    np.testing.assert_allclose(frequency, [1, 1])
    np.testing.assert_allclose(listed, [0.75, 0.75])


def test_intra_list_diversity_by_hand() -> None:
    vectors = np.array([[1, 0], [0, 1], [1, 0], [-1, 0]], np.float32)
    score, request = [9, 8, 7, 1, 5, 4, 3], [0, 0, 0, 0, 1, 1, 2]
    item = np.array([0, 1, 2, 3, 0, 3, 1])
    found = metrics.intra_list_diversity(rank(score, request), item, vectors, 3)
    # Request 0: pairs (0,1), (0,2), (1,2) have cosines 0, 1, 0. Request 1: -1. Request 2: one item.
    np.testing.assert_allclose(found, [1 - 1 / 3, 2, np.nan])


def test_calibration_error_by_hand() -> None:
    probability = np.array([0.1, 0.2, 0.7, 0.8])
    click = np.array([0, 1, 1, 1])
    # Two bins: |.15 - .5| and |.75 - 1|, half the rows each.
    error = metrics.expected_calibration_error(probability, click, 2)
    assert error == pytest.approx(0.5 * 0.35 + 0.5 * 0.25)


def test_equal_predictions_share_a_bin() -> None:
    count, predicted, clicked = metrics.calibration_bins(
        np.full(6, 0.5), np.array([1, 0, 0, 0, 0, 0]), 3
    )
    assert (count.tolist(), predicted.tolist()) == ([6], [0.5])
    np.testing.assert_allclose(clicked, [1 / 6])
    assert np.isnan(metrics.expected_calibration_error(np.zeros(0), np.zeros(0), 3))


def test_sigmoid_does_not_overflow() -> None:
    with np.errstate(over="raise"):
        found = metrics.sigmoid(np.array([-1000, 0, 1000], np.float32))
    assert found.tolist() == [0, 0.5, 1]


@settings(max_examples=60)
@given(st.lists(ROW, min_size=1, max_size=40), st.integers(1, 6))
def test_metrics_equal_those_of_sklearn_and_brute_force(
    rows: list[tuple[int, int, int]], k: int
) -> None:
    request, score, click = (np.array(column) for column in zip(*rows, strict=True))
    ranking = metrics.rank_rows(score.astype(np.float32), request, 4)
    area = metrics.user_auc(request, click, score, ranking.order, 4)
    gain = metrics.ndcg(ranking, click == 1, k)
    hits = metrics.hit_rate(ranking, click == 1, k)
    for group in range(4):
        s, y = score[request == group], click[request == group]
        if len(set(y.tolist())) == 2:
            assert area[group] == pytest.approx(roc_auc_score(y, s))
        else:
            assert np.isnan(area[group])
        if len(set(y.tolist())) < 2:
            assert np.isnan(gain[group]) and np.isnan(hits[group])
            continue
        assert gain[group] == pytest.approx(ndcg_score([y], [s], k=k))
        if len(y) > k:
            assert hits[group] == pytest.approx(mean_hits(s, y, k))
        else:
            assert np.isnan(hits[group])


def mean_hits(score: NDArray[np.int64], click: NDArray[np.int64], k: int) -> float:
    """Hits of the top k, mean over many random orders of ties, by exact counting per run."""
    hits, left = 0.0, k
    for value in sorted(set(score.tolist()), reverse=True):
        run = click[score == value]
        taken = min(left, len(run))
        hits += run.sum() * taken / len(run)
        left -= taken
    return hits / min(k, int(click.sum()))


def test_segments_by_hand() -> None:
    # 100 exposures; items of 40 and 20 hold the first half, the other 20 ties and is head too.
    exposures = np.array([40, 20, 20, 15, 5, 0])
    found = item_segments(exposures, tail_below=10, head_share=0.5)
    assert found.tolist() == [HEAD, HEAD, HEAD, MID, TAIL, TAIL]


def test_a_rarely_exposed_item_is_tail_even_among_the_most_exposed() -> None:
    assert item_segments(np.array([3, 2]), 20, 0.5).tolist() == [TAIL, TAIL]
    assert item_segments(np.array([0, 0]), 0, 0.5).tolist() == [MID, MID]
    assert item_segments(np.array([30, 30]), 20, 0.0).tolist() == [MID, MID]
