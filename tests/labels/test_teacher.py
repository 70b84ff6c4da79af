"""Labels from a ranker's scores, and second opinions, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from prerank.data.unexposed import interaction_counts
from prerank.errors import ConfigError
from prerank.labels.config import LabelConfig
from prerank.labels.label import label
from prerank.labels.mix import mixed
from prerank.labels.teacher import extremes


def by_item(user: np.ndarray, item: np.ndarray, time: np.ndarray) -> np.ndarray:
    """A teacher that likes items by their number: logit = (item - 40) / 10."""
    return ((item - 40) / 10).astype(np.float32)


def test_extremes_by_hand() -> None:
    score = np.float32([5, 1, 4, 2, 3, 0, 6, 7, 8, 9])
    # Half of two expected clicks, and half of the eight others.
    best, worst = extremes(score, prior=0.2, share=0.5)
    assert np.flatnonzero(best).tolist() == [9]
    assert sorted(score[worst]) == [0, 1, 2, 3]
    best, worst = extremes(score, prior=0.3, share=1.0)
    assert (best.sum(), worst.sum(), (best & worst).sum()) == (3, 7, 0)


def test_soft_labels_are_the_teachers_probabilities(planted) -> None:
    dataset, items, _ = planted
    found = label(dataset, items, None, LabelConfig(source="teacher"), 0, by_item)
    np.testing.assert_allclose(found.label, expit((found.item - 40) / 10), rtol=1e-6)
    assert set(found.confidence.tolist()) == {1.0}
    assert found.fit["pseudo_weight_factor"] == 1


def test_two_thresholds_give_clicks_at_the_prior_and_abstain_between(planted) -> None:
    dataset, items, _ = planted
    config = LabelConfig(source="teacher", teacher_rule="two-threshold", teacher_share=0.5)
    found = label(dataset, items, None, config, 0, by_item)
    known = found.confidence > 0
    prior = found.fit["prior"]
    assert known.mean() == pytest.approx(0.5, abs=0.01)
    assert found.label[known].mean() == pytest.approx(prior, abs=0.01)
    assert set(found.label[known].tolist()) == {0.0, 1.0}
    above, below = found.item[known & (found.label == 1)], found.item[known & (found.label == 0)]
    assert above.min() >= found.item[~known].max() >= found.item[~known].min() >= below.max()


def test_thresholds_follow_from_a_stated_prior(planted) -> None:
    dataset, items, _ = planted
    config = LabelConfig(source="teacher", teacher_rule="two-threshold", prior=0.3)
    found = label(dataset, items, None, config, 0, by_item)
    assert found.label[found.confidence > 0].mean() == pytest.approx(0.3, abs=0.01)
    assert (found.fit["prior"], found.fit["prior_source"]) == (0.3, "given")


def test_the_surest_keep_their_probabilities(planted) -> None:
    dataset, items, _ = planted
    found, hard = (
        label(dataset, items, None, LabelConfig(source="teacher", teacher_rule=rule), 0, by_item)
        for rule in ("surest", "two-threshold")
    )
    np.testing.assert_array_equal(found.confidence, hard.confidence)
    known = found.confidence > 0
    np.testing.assert_allclose(found.label[known], expit((found.item[known] - 40) / 10), rtol=1e-6)


def test_unlabeled_pairs_all_abstain(planted) -> None:
    dataset, items, _ = planted
    found = label(dataset, items, None, LabelConfig(source="unlabeled"), 0)
    negatives = label(dataset, items, None, LabelConfig(source="negatives"), 0)
    assert found.source == "unlabeled"
    assert found.confidence.max() == 0
    np.testing.assert_array_equal(found.item, negatives.item)


def test_negatives_count_by_popularity(planted) -> None:
    dataset, items, _ = planted
    config = LabelConfig(source="negatives", negative_power=0.75)
    found = label(dataset, items, None, config, 0)
    expected = (interaction_counts(dataset)[found.item] + 1.0) ** 0.75
    np.testing.assert_allclose(found.confidence, expected / expected.mean(), rtol=1e-5)
    assert found.confidence.std() > 0.1


def test_a_second_opinion_by_hand(planted) -> None:
    dataset, items, anchors = planted
    own = label(dataset, items, anchors, LabelConfig(confidence="uniform"), 0)
    own.fit["pseudo_weight_factor"] = 0.5  # type: ignore[index]
    found = mixed(own, np.zeros(len(own)), 0.2, "negatives")
    # Weight .8 * .5 * 1 = .4 on the own label, .2 on 0: two thirds of it are left.
    matched = own.confidence == 1
    assert matched.any()
    np.testing.assert_allclose(found.label[matched], own.label[matched] * 2 / 3, rtol=1e-6)
    assert found.confidence.mean() == pytest.approx(1, rel=1e-5)
    assert found.fit["pseudo_weight_factor"] == 1


def test_without_skill_only_the_second_opinion_is_left(planted) -> None:
    dataset, items, anchors = planted
    own = label(dataset, items, anchors, LabelConfig(), 0)
    own.fit["pseudo_weight_factor"] = 0.0  # type: ignore[index]
    found = mixed(own, np.full(len(own), 0.25), 0.5, "teacher")
    assert set(found.label.tolist()) == {0.25}
    assert set(found.confidence.tolist()) == {1.0}


def test_mixed_loss_is_the_sum_of_both(planted) -> None:
    dataset, items, anchors = planted
    config = LabelConfig(mix="teacher", mix_share=0.3)
    own = label(dataset, items, anchors, LabelConfig(), 0)
    found = label(dataset, items, anchors, config, 0, by_item)
    p = 0.7  # whatever the pre-ranker says, the blended term is the sum of both

    def cost(target: np.ndarray) -> np.ndarray:
        return -(target * np.log(p) + (1 - target) * np.log(1 - p))

    factor = own.fit["pseudo_weight_factor"]
    taught = expit(by_item(own.user, own.item, own.time).astype(np.float64))
    both = 0.7 * factor * own.confidence * cost(own.label) + 0.3 * cost(taught)
    scale = both / (found.confidence * cost(found.label))
    np.testing.assert_allclose(scale, scale[0], rtol=1e-4)


@pytest.mark.parametrize("config", [LabelConfig(source="teacher"), LabelConfig(mix="teacher")])
def test_a_missing_teacher_is_told(planted, config: LabelConfig) -> None:
    dataset, items, anchors = planted
    with pytest.raises(ConfigError, match="need a teacher"):
        label(dataset, items, anchors, config, 0)


@pytest.mark.parametrize("source", ["negatives", "unlabeled", "none"])
def test_a_mix_with_nothing_is_refused(source: str) -> None:
    with pytest.raises(ConfigError, match="needs labels of another source"):
        LabelConfig.parse({"source": source, "mix": "negatives"})
