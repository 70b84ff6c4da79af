from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression

from prerank.artifacts import Cuts
from prerank.data.unexposed import beside_logged
from prerank.errors import DataError
from prerank.labels.calibration import (
    PriorCounts,
    brier_skill,
    cross_fitted,
    fit_map,
    folds_of_users,
    held_out_rows,
    prior_shift,
    reliability,
    skill,
    stated_prior,
    weight_factor,
)


def clicks_of(score, rng):
    return (rng.random(len(score)) < expit(4 * score - 1)).astype(np.int8)


@pytest.mark.parametrize("calibrator", ["isotonic", "logistic"])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=20)
def test_map_never_falls_and_stays_inside(calibrator, seed):
    rng = np.random.default_rng(seed)
    score = rng.uniform(-1, 1, 200).astype(np.float32)
    click = rng.integers(0, 2, 200).astype(np.int8)  # no signal: a free fit could fall
    curve = fit_map(score, click, calibrator)
    logits = curve.logits(np.linspace(-1, 1, 101, dtype=np.float32))
    assert (np.diff(logits) >= 0).all()
    assert np.isfinite(logits).all()
    assert len(curve.score) <= 64


def test_isotonic_equals_sklearn_at_its_knots():
    rng = np.random.default_rng(0)
    score = np.round(rng.uniform(0, 1, 500), 2).astype(np.float32)
    click = clicks_of(score, rng)
    curve = fit_map(score, click, "isotonic")
    theirs = IsotonicRegression(out_of_bounds="clip").fit(score.astype(np.float64), click)
    expected = np.clip(theirs.predict(curve.score), 1e-3, 1 - 1e-3)
    np.testing.assert_allclose(expit(curve.logit), expected, atol=1e-12)


def test_map_by_hand():
    # Clicks 0 1 at score 0 and 1 1 at score 1: rates 1/2 and 1 (kept off 1).
    score = np.array([0, 0, 1, 1], np.float32)
    curve = fit_map(score, np.array([0, 1, 1, 1], np.int8), "isotonic")
    label = expit(curve.logits(np.array([-5, 0, 1, 5], np.float32)))
    np.testing.assert_allclose(label, [0.5, 0.5, 0.999, 0.999], atol=1e-9)


def test_logistic_flattens_a_falling_relation():
    score = np.array([0, 0, 0, 1, 1, 1], np.float32)
    curve = fit_map(score, np.array([1, 1, 0, 0, 0, 1], np.int8), "logistic")
    np.testing.assert_allclose(expit(curve.logits(score)), 0.5)


def test_one_kind_of_click_is_refused():
    with pytest.raises(DataError, match="label map cannot be fitted"):
        fit_map(np.zeros(3, np.float32), np.zeros(3, np.int8), "isotonic")


@given(
    logits=npst.arrays(np.float64, st.integers(1, 40), elements=st.floats(-7, 7)),
    prior=st.floats(0.001, 0.999),
)
@settings(max_examples=100)
def test_shift_meets_the_prior_exactly(logits, prior):
    shift = prior_shift(logits, prior)
    assert expit(logits + shift).mean() == pytest.approx(prior, abs=1e-8)


def test_shift_by_hand():
    # Labels 1/2 and 1/2 to a mean of 1/5: every logit moves to log(1/4).
    assert prior_shift(np.zeros(2), 0.2) == pytest.approx(np.log(1 / 4))


def test_prior_from_propensity_by_hand(make_dataset):
    # Odds of not being exposed: (1 - .5)/.5 = 1 clicked, (1 - .2)/.2 = 4 not: 1 / (1 + 4).
    dataset = make_dataset(
        1,
        3,
        exposed=[(0, 0, 1, 0), (0, 1, 0, 0)],
        candidates=[],
        interactions=[],
        propensity=[0.5, 0.2],
    )
    prior, how = stated_prior(PriorCounts.of(dataset, "training"), 10, "auto")
    assert (prior, how) == (pytest.approx(0.2, abs=1e-6), "inverse propensity")


def test_one_tiny_propensity_does_not_decide_the_prior(make_dataset):
    dataset = make_dataset(
        1,
        4,
        exposed=[(0, 0, 1, 0), (0, 1, 0, 0), (0, 2, 1, 0)],
        candidates=[],
        interactions=[],
        propensity=[0.5, 0.005, 1e-12],
    )
    # Odds 1 and, as at .01, 99 and 99.
    prior, _ = stated_prior(PriorCounts.of(dataset, "training"), 10, "auto")
    assert prior == pytest.approx((1 + 99) / (1 + 99 + 99))


def test_prior_from_counts_by_hand(make_dataset):
    # One click among 2 exposed and 3 unexposed pairs; held-out exposures are no part of D.
    dataset = make_dataset(
        1,
        6,
        exposed=[(0, 0, 1, 0), (0, 1, 0, 0), (0, 2, 1, 1), (0, 3, 0, 1), (0, 4, 1, 2)],
        candidates=[],
        interactions=[],
    )
    counts = PriorCounts.of(dataset, "training")
    assert stated_prior(counts, 3, "auto")[0] == pytest.approx(1 / 5)
    assert stated_prior(counts, 3, "exposed") == (0.5, "click rate of exposures")
    assert stated_prior(counts, 3, 0.3) == (0.3, "given")


@pytest.mark.parametrize(
    ("candidate_user", "candidate_time", "way", "expected"),
    [
        (0, 10, "requests", 1 / 5),  # user 1's request has no candidate
        (2, 10, "anchors", 2 / 6),  # no exposure's request has
        (2, 10, "training", 4 / 8),  # were the pairs proposed
    ],
)
def test_prior_counts_exposures_beside_the_candidates(
    make_dataset, candidate_user, candidate_time, way, expected
):
    # After the anchor cut at 10: pair 0 shown twice, clicked once, and pair 1; 2 and 3 are older.
    older, late = [(0, 2, 1, 0), (0, 3, 1, 0)], [(0, 0, 0, 0), (0, 0, 1, 0), (0, 1, 0, 0)]
    dataset = make_dataset(
        3,
        6,
        exposed=[*older, *late, (1, 0, 1, 0)],
        exposure_time=[8, 9, 10, 11, 12, 13],
        candidates=[(candidate_user, 5, np.nan)],
        candidate_time=candidate_time,
        interactions=[],
        time_unit="ms",
        cuts=Cuts(anchors=10, validation=20, test=30),
    )
    assert way in (beside_logged([dataset]), "training")
    counts = PriorCounts.of(dataset, way)
    assert stated_prior(counts, 3, "auto")[0] == pytest.approx(expected)


def test_no_d_e_is_empty(make_dataset):
    dataset = make_dataset(
        1,
        3,
        exposed=[(0, 0, 1, 0), (0, 1, -1, 0)],
        exposure_time=[8, 12],
        candidates=[(0, 2, np.nan)],
        candidate_time=12,
        interactions=[],
        time_unit="ms",
        cuts=Cuts(anchors=10, validation=20, test=30),
    )
    assert beside_logged([dataset]) == "training"


def test_an_unknown_click_is_no_missing_one(make_dataset):
    known, unknown = [(0, 0, 1, 0), (0, 1, 0, 0)], [(0, 2, -1, 0), (0, 3, -1, 1)]
    with_unknown, without = (
        PriorCounts.of(make_dataset(1, 6, exposed=rows, candidates=[], interactions=[]), "training")
        for rows in (known + unknown, known)
    )
    assert with_unknown.exposed_rate() == without.exposed_rate()
    assert with_unknown.prior(2) == without.prior(2)
    assert without.exposed_rate()[0] == 0.5
    assert without.prior(2)[0] == 0.25


def test_held_out_without_time_is_validation_minus_history(make_dataset):
    dataset = make_dataset(
        1,
        6,
        exposed=[(0, 0, 1, 0), (0, 1, 0, 1), (0, 2, 1, 1), (0, 3, -1, 1), (0, 4, 1, 2)],
        candidates=[],
        interactions=[(0, 2)],
    )
    # Row 0 trains, row 2 is in the history, row 3 is unknown, row 4 is test.
    assert held_out_rows(dataset).tolist() == [1]


def test_held_out_with_time_adds_training_after_the_anchor_cut(make_dataset):
    dataset = make_dataset(
        1,
        6,
        exposed=[(0, 0, 1, 0), (0, 1, 0, 0), (0, 2, 1, 0), (0, 3, 0, 1)],
        exposure_time=[5, 10, 12, 20],
        candidates=[],
        interactions=[(0, 0), (0, 2)],
        interaction_time=[5, 12],
        time_unit="ms",
        cuts=Cuts(anchors=10, validation=20, test=30),
    )
    # Row 2 is an interaction too, but after the cut: the anchors cannot know it.
    assert held_out_rows(dataset).tolist() == [1, 2, 3]


def test_skill_by_hand():
    # User 0 in perfect order (AUC 1), user 1 all tied (AUC 1/2): GAUC 3/4, skill 1/2.
    user = np.array([0, 0, 1, 1], np.int32)
    click = np.array([0, 1, 0, 1], np.int8)
    found = skill(user, click, np.array([0, 1, 2, 2], np.float32))
    assert found["gauc"] == 0.75
    assert found["skill"] == 0.5
    # Standard deviation of the AUCs 1/2 and 1 is sqrt(1/8); over sqrt(2) users: 1/4; twice: 1/2.
    assert found["skill_low"] == pytest.approx(0.5 - 1.645 * 0.5)


def test_skill_is_unknown_for_one_user():
    found = skill(np.zeros(2, np.int32), np.array([0, 1], np.int8), np.array([0.0, 1.0]))
    assert found["skill_low"] is None
    assert weight_factor(found["skill_low"], 0.1) == 0


@pytest.mark.parametrize(("low", "factor"), [(-0.2, 0), (0, 0), (0.05, 0.25), (0.1, 1), (0.7, 1)])
def test_weight_factor(low, factor):
    assert weight_factor(low, 0.1) == pytest.approx(factor)


def test_folds_are_even_and_whole():
    fold = folds_of_users(11, 4, np.random.default_rng(0))
    assert sorted(np.bincount(fold).tolist()) == [2, 3, 3, 3]


def test_cross_fitting_never_sees_its_own_fold():
    rng = np.random.default_rng(0)
    score = rng.uniform(0, 1, 300).astype(np.float32)
    click, fold = clicks_of(score, rng), np.repeat([0, 1, 2], 100).astype(np.int32)
    plain = cross_fitted(score, click, fold, "isotonic")
    other = click.copy()
    other[fold == 1] = 1 - other[fold == 1]
    changed = cross_fitted(score, other, fold, "isotonic")
    np.testing.assert_array_equal(plain[fold == 1], changed[fold == 1])
    assert (plain[fold != 1] != changed[fold != 1]).any()


def test_reliability_and_brier_by_hand():
    label = np.array([0.8, 0.2, 0.6, 0.4, np.nan])
    click = np.array([1, 0, 1, 0, 1], np.int8)
    found = reliability(label, click, n_bins=2)
    np.testing.assert_allclose(found, [[0.3, 0, 2], [0.7, 1, 2]])
    # Mean squared error (.04 + .04 + .16 + .16) / 4 = .1 against .25 of the constant 1/2.
    assert brier_skill(label, click) == pytest.approx(1 - 0.1 / 0.25)
    assert brier_skill(label[:1], click[:1]) is None
