"""Pseudo-labels against the truth: hand values, brute force, scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from prerank import artifacts as a
from prerank.evaluation import audit as stage

from .worlds import dataset


def world(truth: dict[tuple[int, int], float], exposures: dict[int, int]) -> a.Dataset:
    """A dataset whose candidates are the pairs of ``truth``."""
    base = dataset([0], [0], [1], exposures=exposures, n_users=60, n_items=40)
    n = len(truth)
    pairs = np.array(list(truth), np.int32).reshape(n, 2)
    candidates = a.Candidates(
        request=np.zeros(n, np.int64),
        user=pairs[:, 0],
        item=pairs[:, 1],
        time=np.zeros(n, np.int64),
        stage=np.zeros(n, np.int8),
        score=np.full(n, np.nan, np.float32),
        truth=np.array(list(truth.values()), np.float32),
    )
    return replace(base, candidates=candidates)


def labels(rows: list[tuple[int, int, float, float]]) -> a.PseudoLabels:
    """Pseudo-labels of (user, item, label, confidence)."""
    user, item, label, confidence = (np.array(column) for column in zip(*rows, strict=True))
    nothing = np.full(len(rows), np.nan, np.float32)
    return a.PseudoLabels(
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        time=np.zeros(len(rows), np.int64),
        label=label.astype(np.float32),
        confidence=confidence.astype(np.float32),
        relevance=nothing,
        anchor=np.full(len(rows), -1, np.int64),
        dispersion=nothing,
        history=nothing,
        llm=nothing,
    )


HAND = {(0, 0): 1.0, (0, 1): 0.0, (0, 2): 0.0, (1, 0): 0.0, (1, 2): 1.0, (1, 3): 0.0}


def test_figures_by_hand() -> None:
    made = labels([(0, 0, 0.9, 1), (0, 1, 0.5, 1), (0, 2, 0.1, 0), (1, 0, 0.5, 2), (1, 2, 0.3, 2)])
    found = stage.audit(made, world(HAND, {0: 9, 1: 9, 2: 1}), 0)
    assert found is not None
    # Five of its pairs have a truth, four a label; (0, 2) abstains.
    assert (found["n"], found["labelled"], found["coverage"]) == (5, 4, 0.8)
    # Clicked .9 and .3 against .5 and .5: two wins of four. User 0 wins, user 1 loses.
    assert found["all"]["auc"] == pytest.approx(0.5)
    assert found["all"]["gauc"] == pytest.approx(0.5)
    assert (found["all"]["mean_label"], found["all"]["mean_truth"]) == pytest.approx((0.55, 0.5))
    # Bins .3, {.5, .5}, .9 with truth 1, 0, 1: (.7 + 2 * .5 + .1) / 4.
    assert found["all"]["ece"] == pytest.approx(0.45)
    assert [b["n"] for b in found["reliability"]] == [1, 2, 1]
    # Popularity: item 2 was exposed once, items 0 and 1 nine times.
    rare, popular = found["by_popularity"]
    assert (rare["n"], rare["coverage"], rare["low"], rare["high"]) == (1, 0.5, 1, 1)
    assert (popular["n"], popular["coverage"], popular["low"]) == (3, 1, 9)
    assert popular["auc"] == 1 and rare["auc"] is None
    # Confidence 1: right order; confidence 2: wrong order.
    assert [part["auc"] for part in found["by_confidence"]] == [1, 0]
    assert found["confidence_gain"] is not None
    assert found["confidence_gain"]["value"] == pytest.approx(-1)


def test_no_truth_no_audit() -> None:
    made = labels([(0, 9, 0.5, 1)])
    assert stage.audit(made, world(HAND, {}), 0) is None


def test_equal_labels_are_not_audited() -> None:
    assert stage.audit(labels([(0, 0, 0, 1), (0, 1, 0, 1)]), world(HAND, {}), 0) is None


def test_all_abstain() -> None:
    found = stage.audit(labels([(0, 0, 0.5, 0)]), world(HAND, {}), 0)
    assert found is not None
    assert (found["labelled"], found["all"]["auc"], found["all"]["ece"]) == (0, None, None)


def random_rows(seed: int, skill_of_sure: float) -> tuple[a.Dataset, a.PseudoLabels]:
    """60 users x 40 items; labels of the confident half know the truth, the others do not."""
    rng = np.random.default_rng(seed)
    user, item = (part.ravel() for part in np.meshgrid(np.arange(60), np.arange(40)))
    click = rng.random(2400) < 0.3
    sure = rng.random(2400) < 0.5
    label = 1 / (1 + np.exp(-rng.normal(skill_of_sure * click * sure, 1)))
    confidence = np.where(sure, 1.5, 0.5) + rng.random(2400) / 10
    truth = {(int(u), int(i)): float(c) for u, i, c in zip(user, item, click, strict=True)}
    rows = list(zip(user.tolist(), item.tolist(), label.tolist(), confidence.tolist(), strict=True))
    return world(truth, {k: 3 * k + 1 for k in range(40)}), labels(rows)


def test_says_whether_confidence_predicts_correctness() -> None:
    good = stage.audit(labels_ := random_rows(0, 2.0)[1], random_rows(0, 2.0)[0], 0)
    none = stage.audit(random_rows(0, 0.0)[1], random_rows(0, 0.0)[0], 0)
    flat = stage.audit(
        replace(labels_, confidence=np.ones(2400, np.float32)), random_rows(0, 2.0)[0], 0
    )
    assert good is not None and none is not None and flat is not None
    assert good["sentence"].startswith("Confidence predicts correctness: AUC 0.9")
    assert none["sentence"].startswith("Confidence does not tell")
    assert "the same for all" in flat["sentence"] and flat["confidence_gain"] is None
    assert len(good["by_popularity"]) == 10 and len(good["by_confidence"]) == 5
    assert sum(part["n"] for part in good["by_popularity"]) == good["labelled"] == 2400


def test_hard_truth_gives_the_usual_auc() -> None:
    rng = np.random.default_rng(1)
    user = rng.integers(0, 20, 400).astype(np.int64)
    click = (rng.random(400) < 0.4).astype(np.float64)
    score = rng.normal(click).round(1)
    made = stage.soft_auc_sums(user, click, score, 25)
    assert made.values()[0] == pytest.approx(roc_auc_score(click, score))
    by_user = stage.soft_auc(user, click, score, 25)
    for one in range(25):
        mine = user == one
        if len(set(click[mine].tolist())) == 2:
            assert by_user[one] == pytest.approx(roc_auc_score(click[mine], score[mine]))
        else:
            assert np.isnan(by_user[one])


def test_hard_truth_gives_the_influence_of_evaluate() -> None:
    from prerank.evaluation.metrics import sort_rows
    from prerank.evaluation.significance import auc_sums

    rng = np.random.default_rng(2)
    user = rng.integers(0, 20, 300).astype(np.int64)
    click = (rng.random(300) < 0.4).astype(np.int8)
    score = rng.normal(click).round(1).astype(np.float32)
    one = auc_sums(user, click, score, sort_rows(score), 22)
    other = stage.soft_auc_sums(user, click.astype(np.float64), score.astype(np.float64), 22)
    np.testing.assert_allclose(other.num, one.num, atol=1e-12)
    np.testing.assert_array_equal(other.den, one.den)


def test_soft_truth_equals_brute_force() -> None:
    rng = np.random.default_rng(3)
    user, truth = np.repeat([0, 1], 6).astype(np.int64), rng.random(12)
    score = rng.integers(0, 4, 12).astype(np.float64)

    def brute(rows: np.ndarray) -> float:
        wins = total = 0.0
        for i in rows:
            for j in rows:
                if i != j:
                    weight = truth[i] * (1 - truth[j])
                    total += weight
                    wins += weight * ((score[i] > score[j]) + (score[i] == score[j]) / 2)
        return wins / total

    per_user = stage.soft_auc(user, truth, score, 2)
    assert per_user.tolist() == pytest.approx([brute(np.arange(6)), brute(np.arange(6, 12))])
    assert stage.soft_auc_sums(user, truth, score, 2).values()[0] == pytest.approx(
        brute(np.arange(12))
    )


def test_soft_truth_is_the_mean_over_drawn_clicks() -> None:
    rng = np.random.default_rng(4)
    truth, score = rng.uniform(0.1, 0.9, 300), rng.normal(size=300)
    truth = np.clip(truth + 0.2 * score, 0.02, 0.98)
    whole = np.zeros(300, np.int64)
    drawn = [roc_auc_score(rng.random(300) < truth, score) for _ in range(200)]
    expected = stage.soft_auc(whole, truth, score, 1)[0]
    assert expected == pytest.approx(np.mean(drawn), abs=0.006)


def test_equal_parts_keep_ties_together() -> None:
    part = stage.equal_parts(np.array([0, 0, 0, 0, 0, 0, 1, 2, 3, 4.0]), 5)
    assert part[:6].tolist() == [0] * 6
    assert part.tolist() == sorted(part.tolist()) and set(part.tolist()) == {0, 1, 2}
    assert stage.equal_parts(np.ones(7), 5).tolist() == [0] * 7
    assert np.bincount(stage.equal_parts(np.arange(100.0), 10)).tolist() == [10] * 10
