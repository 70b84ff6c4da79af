from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logit

from prerank import store
from prerank.artifacts import TRAIN, ItemEmbeddings, PseudoLabels
from prerank.data.unexposed import after_training, known_in_training, pair_keys
from prerank.errors import ConfigError, DataError
from prerank.labels.config import LabelConfig
from prerank.labels.joint import similarities
from prerank.labels.label import label
from prerank.labels.matching import Pooling

EVERY_WAY = [
    LabelConfig(),
    LabelConfig(map="linear"),
    LabelConfig(map="two-threshold"),
    LabelConfig(map="joint"),
    LabelConfig(map="joint", joint_correction=0.0),
    LabelConfig(calibrator="logistic", prior="keep"),
    LabelConfig(confidence="user"),
    LabelConfig(confidence="uniform", match="top-m"),
    LabelConfig(match="log-sum-exp", pairs="both", proposed_per_user=5),
    LabelConfig(match="probability-weighted", max_pairs=70),
    LabelConfig(source="negatives"),
    LabelConfig(source="negatives", pairs="proposed"),
    LabelConfig(source="negatives", negative_power=0.75),
    LabelConfig(mix="negatives"),
    LabelConfig(source="truth"),
    LabelConfig(shuffle="labels"),
    LabelConfig(shuffle="confidence"),
]


@pytest.mark.parametrize("config", EVERY_WAY, ids=str)
def test_contract_of_every_way(planted, config):
    dataset, items, anchors = planted
    found = label(dataset, items, anchors, config, seed=3)
    assert len(found) > 0
    assert ((found.label >= 0) & (found.label <= 1)).all()
    key = pair_keys(found.user, found.item)
    assert not np.isin(key, known_in_training(dataset, after_training(dataset))).any()
    assert (np.diff(key) > 0).all()
    labelled = found.confidence > 0
    assert found.confidence[labelled].mean() == pytest.approx(1, rel=1e-4)
    assert 0 <= found.fit["pseudo_weight_factor"] <= 1
    assert found.fit["n_pairs"] == len(found)
    assert sum(found.fit["label_histogram"]) == labelled.sum()
    json.dumps(found.fit, allow_nan=False)


@pytest.mark.parametrize("config", EVERY_WAY, ids=str)
def test_same_seed_same_bytes(planted, config):
    dataset, items, anchors = planted
    first, second = (label(dataset, items, anchors, config, seed=3) for _ in range(2))
    for name, values in first.columns().items():
        assert values.tobytes() == getattr(second, name).tobytes()
    assert first.fit == second.fit


def test_planted_taste_is_found(planted):
    dataset, items, anchors = planted
    found = label(dataset, items, anchors, LabelConfig(), seed=0)
    truth = {
        (int(u), int(i)): t
        for u, i, t in zip(
            dataset.candidates.user, dataset.candidates.item, dataset.candidates.truth, strict=True
        )
    }
    clicked = np.array(
        [truth[u, i] for u, i in zip(found.user.tolist(), found.item.tolist(), strict=True)]
    )
    assert found.label[clicked == 1].mean() > 1.5 * found.label[clicked == 0].mean()
    assert found.fit["pseudo_weight_factor"] == 1


def test_labels_without_signal_get_no_weight(planted):
    dataset, items, anchors = planted
    rng = np.random.default_rng(0)
    noise = ItemEmbeddings(items.vectors[rng.permutation(len(items.vectors))])
    found = label(dataset, noise, anchors, LabelConfig(), seed=0)
    assert found.fit["pseudo_weight_factor"] == 0
    kept = label(dataset, noise, anchors, LabelConfig(skill_weight=False), seed=0)
    assert kept.fit["pseudo_weight_factor"] == 1


def test_weight_is_judged_by_relevance_whatever_the_map(planted):
    dataset, items, anchors = planted
    fits = [
        label(dataset, items, anchors, LabelConfig(map=way, full_skill=1.0), seed=0).fit
        for way in ("calibrated", "linear", "joint")
    ]
    low = fits[0]["skill"]["skill_low"]
    assert fits[0]["pseudo_weight_factor"] == pytest.approx(low**2)
    assert 0 < low < 1
    assert len({fit["pseudo_weight_factor"] for fit in fits}) == 1


@pytest.mark.parametrize("way", ["calibrated", "joint"])
def test_mean_label_is_the_stated_prior(planted, way):
    dataset, items, anchors = planted
    found = label(dataset, items, anchors, LabelConfig(map=way, prior=0.07), seed=0)
    assert found.label.mean() == pytest.approx(0.07, abs=1e-5)
    assert found.fit["prior_source"] == "given"


def test_calibrated_label_rises_with_relevance(planted):
    dataset, items, anchors = planted
    found = label(dataset, items, anchors, LabelConfig(), seed=0)
    order = np.argsort(found.relevance, kind="stable")
    assert (np.diff(found.label[order]) >= 0).all()
    knots = np.array(found.fit["knots"])
    # The knots kept for drawing are the map itself: straight lines in logit space.
    logits = np.interp(found.relevance, knots[:, 0], logit(knots[:, 1]))
    np.testing.assert_allclose(expit(logits), found.label, atol=1e-3)


def test_linear_and_two_threshold_by_hand(make_dataset, make_anchors, in_plane):
    # One anchor at 0 degrees; items whose cosines are 1, .8, .5, 0.
    angles = [0.0, float(np.rad2deg(np.arccos(0.8))), 60.0, 90.0]
    dataset = make_dataset(
        1, 4, exposed=[], candidates=[(0, k, np.nan) for k in range(4)], interactions=[]
    )
    items, anchors = ItemEmbeddings(in_plane(angles)), make_anchors([in_plane([0])])
    linear = LabelConfig(map="linear", low=0.4, high=0.9)
    found = label(dataset, items, anchors, linear, seed=0)
    np.testing.assert_allclose(found.label, [1, 0.8, 0.2, 0], atol=1e-5)
    sure = LabelConfig(map="two-threshold", low=0.4, high=0.9)
    found = label(dataset, items, anchors, sure, seed=0)
    np.testing.assert_array_equal(found.label, [1, 0, 0, 0])
    np.testing.assert_array_equal(found.confidence, [1, 0, 0, 1])


def test_users_without_anchors_abstain(planted, make_anchors):
    dataset, items, anchors = planted
    parts = np.split(anchors.vectors_of(slice(None)), anchors.offsets[1:-1])
    parts[4] = parts[4][:0]
    found = label(dataset, items, make_anchors(parts), LabelConfig(), seed=0)
    lonely = found.user == 4
    assert lonely.any()
    assert (found.confidence[lonely] == 0).all()
    assert (found.confidence[~lonely] > 0).all()
    assert (found.anchor[lonely] == -1).all()
    assert np.isnan(found.relevance[lonely]).all()


def test_matched_anchor_belongs_to_the_user_and_explains(planted):
    dataset, items, anchors = planted
    found = label(dataset, items, anchors, LabelConfig(), seed=0)
    assert (anchors.users()[found.anchor] == found.user).all()
    cosine = (anchors.vectors_of(found.anchor) * items.vectors[found.item]).sum(axis=1)
    np.testing.assert_allclose(found.relevance, cosine, atol=1e-5)


@pytest.mark.parametrize(("shuffle", "column"), [("labels", "label"), ("confidence", "confidence")])
def test_shuffles_are_permutations(planted, shuffle, column):
    dataset, items, anchors = planted
    plain = label(dataset, items, anchors, LabelConfig(), seed=0)
    found = label(dataset, items, anchors, LabelConfig(shuffle=shuffle), seed=0)
    for name, values in plain.columns().items():
        if name != column:
            np.testing.assert_array_equal(getattr(found, name), values)
    ours, theirs = getattr(found, column), getattr(plain, column)
    np.testing.assert_array_equal(np.sort(ours), np.sort(theirs))
    assert (ours != theirs).mean() > 0.5


def test_switched_off_factors_do_not_count(planted):
    dataset, items, anchors = planted
    only_llm = LabelConfig(use_dispersion=False, use_history=False, confidence_floor=0.001)
    found = label(dataset, items, anchors, only_llm, seed=0)
    order = np.argsort(np.round(found.llm.astype(np.float64), 5), kind="stable")
    assert (np.diff(found.confidence[order]) >= 0).all()
    none = LabelConfig(use_dispersion=False, use_history=False, use_llm=False)
    assert (label(dataset, items, anchors, none, seed=0).confidence == 1).all()


def test_truth_and_negatives(make_dataset, in_plane):
    dataset = make_dataset(
        1,
        4,
        exposed=[(0, 3, 1, 0)],
        candidates=[(0, 0, 1.0), (0, 1, np.nan), (0, 2, 0.25), (0, 3, 1.0)],
        interactions=[(0, 3)],
    )
    items = ItemEmbeddings(in_plane([0, 1, 2, 3]))
    truth = label(dataset, items, None, LabelConfig(source="truth"), seed=0)
    assert truth.item.tolist() == [0, 1, 2]
    assert truth.label.tolist() == [1, 0, 0.25]
    assert truth.confidence.tolist() == [1, 0, 1]
    negatives = label(dataset, items, None, LabelConfig(source="negatives"), seed=0)
    assert negatives.label.tolist() == [0, 0, 0]
    assert negatives.confidence.tolist() == [1, 1, 1]


def test_sample_of_pairs_is_stated(planted):
    dataset, items, anchors = planted
    found = label(dataset, items, anchors, LabelConfig(max_pairs=70), seed=0)
    assert len(found) == found.fit["n_pairs"] == 70
    held_out = int((dataset.exposures.split != TRAIN).sum())
    assert found.fit["n_unexposed"] == 60 * 25 + held_out
    whole = label(dataset, items, anchors, LabelConfig(), seed=0)
    assert found.fit["prior"] == whole.fit["prior"]


def test_joined_anchors_give_two_similarities(planted):
    dataset, items, anchors = planted
    user, item = dataset.candidates.user[:40], dataset.candidates.item[:40]
    spoken = anchors.logprob.copy()
    spoken[::2] = 0
    joined = replace(anchors, logprob=spoken, logprob_legal=spoken, source="llm+history")
    two = similarities(user, item, items, joined, Pooling())
    one = similarities(user, item, items, anchors, Pooling())
    assert two.shape == (40, 2)
    np.testing.assert_allclose(two.max(axis=1), one[:, 0], atol=1e-6)
    half = joined.only(spoken < 0)
    assert np.diff(half.offsets).tolist() == [2] * anchors.n_users


def test_joint_of_a_user_is_blind_to_that_user(planted):
    """Flip one user's held-out clicks: that user's own joint labels must not move."""
    dataset, items, anchors = planted
    config = LabelConfig(map="joint", prior="keep")
    plain = label(dataset, items, anchors, config, seed=0)
    click = dataset.exposures.click.copy()
    own = (dataset.exposures.user == 7) & (dataset.exposures.split == 1)
    click[own] = 1 - click[own]
    columns = {**dataset.exposures.columns(), "click": click}
    other = type(dataset)(
        **{
            **{f: getattr(dataset, f) for f in dataset.__dataclass_fields__},
            "exposures": type(dataset.exposures)(**columns),
        }
    )
    changed = label(other, items, anchors, config, seed=0)
    mine = plain.user == 7
    np.testing.assert_array_equal(plain.label[mine], changed.label[mine])
    assert (plain.label[~mine] != changed.label[~mine]).any()


def test_joint_map_learns_from_a_ranker_on_rows_it_was_not_trained_on(planted):
    dataset, items, anchors = planted
    rows, candidates = dataset.exposures, dataset.candidates
    truth_UI = np.zeros((len(dataset.users), len(dataset.items)), dtype=np.float32)
    truth_UI[candidates.user, candidates.item] = candidates.truth
    asked = []

    def ranker(user, item, time):
        asked.append(pair_keys(user, item))
        return truth_UI[user, item]

    def gap(found):
        clicked = truth_UI[found.user, found.item] == 1
        return found.label[clicked].mean() - found.label[~clicked].mean()

    plain = label(dataset, items, anchors, LabelConfig(map="joint"), seed=0)
    config = LabelConfig(map="joint", joint_teacher=True)
    found = label(dataset, items, anchors, config, seed=0, teacher=ranker)
    assert gap(found) > gap(plain) + 0.1
    is_train = rows.split == TRAIN
    trained = pair_keys(rows.user[is_train], rows.item[is_train])
    assert not np.isin(np.concatenate(asked), trained).any()


def test_joint_teacher_needs_a_teacher_and_the_joint_map(planted):
    dataset, items, anchors = planted
    with pytest.raises(ConfigError, match="need a teacher"):
        label(dataset, items, anchors, LabelConfig(map="joint", joint_teacher=True), seed=0)
    with pytest.raises(ValueError, match="joint_teacher needs map = joint"):
        LabelConfig(joint_teacher=True)


def test_survives_the_store(planted, tmp_path):
    dataset, items, anchors = planted
    found = label(dataset, items, anchors, LabelConfig(), seed=0)
    store.save(tmp_path, found)
    back = store.load(tmp_path, PseudoLabels)
    np.testing.assert_array_equal(back.label, found.label)
    assert back.fit == found.fit


def test_refusals(planted, make_dataset, make_anchors, in_plane):
    dataset, items, anchors = planted
    with pytest.raises(ConfigError, match="need anchors"):
        label(dataset, items, None, LabelConfig(), seed=0)
    with pytest.raises(ConfigError, match="makes no pseudo-labels"):
        label(dataset, items, None, LabelConfig(source="none"), seed=0)
    with pytest.raises(DataError, match="items of the embeddings"):
        label(dataset, ItemEmbeddings(items.vectors[:5]), anchors, LabelConfig(), seed=0)
    bare = make_dataset(1, 2, exposed=[], candidates=[], interactions=[(0, 0)])
    plane = ItemEmbeddings(in_plane([0, 90]))
    with pytest.raises(ConfigError, match="no logged unexposed"):
        label(bare, plane, None, LabelConfig(source="negatives", pairs="logged"), seed=0)
    with pytest.raises(DataError, match="no unexposed pair has a known truth"):
        label(bare, plane, None, LabelConfig(source="truth"), seed=0)
    with pytest.raises(DataError, match="label map cannot be fitted"):
        label(bare, plane, make_anchors([in_plane([0])]), LabelConfig(), seed=0)


@pytest.mark.parametrize("values", [{"low": 0.9, "high": 0.1}, {"prior": 0.0}, {"prior": "often"}])
def test_bad_settings_are_refused(values):
    with pytest.raises(ConfigError):
        LabelConfig.parse(values)
