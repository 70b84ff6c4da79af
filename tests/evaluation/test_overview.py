"""Funnel, exposure bias, map, lineage and cards, by hand."""

from dataclasses import replace

import numpy as np
import pytest

import tiny
from prerank import artifacts as a
from prerank.evaluation import plots
from prerank.evaluation.cards import data_card, model_card
from prerank.evaluation.extra import StageExtra
from prerank.evaluation.lineage import lineage
from prerank.evaluation.overview import catalog_map, describe_cascade, lorenz
from prerank.vocabulary import Vocabulary

# Training: three exposures (items 0, 1, 2), two of them clicked; six candidates.


def test_funnel_by_hand() -> None:
    steps = {one["step"]: one for one in describe_cascade(tiny.dataset())["funnel"]}
    assert list(steps) == ["recalled", "exposed", "clicked"]
    assert [one["rows"] for one in steps.values()] == [6, 3, 2]
    assert (steps["recalled"]["users"], steps["recalled"]["items"]) == (2, 4)
    assert (steps["clicked"]["users"], steps["clicked"]["items"]) == (2, 2)


def test_logs_without_candidates_start_with_exposures() -> None:
    data = tiny.dataset()
    none = {name: values[:0] for name, values in data.candidates.columns().items()}
    found = describe_cascade(replace(data, candidates=a.Candidates(**none)))
    assert [one["step"] for one in found["funnel"]] == ["exposed", "clicked"]
    assert list(found["lorenz"]) == ["exposures", "clicks"]


def test_tenths_rise_with_exposures_and_sum_to_one() -> None:
    found = describe_cascade(tiny.dataset())["deciles"]
    assert [one["items"] for one in found] == [1, 1, 1, 1]
    assert [one["high"] for one in found] == [0, 1, 1, 1]
    assert [one["exposures"] for one in found] == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])
    assert sum(one["candidates"] for one in found) == pytest.approx(1)


def test_lorenz_of_equals_is_the_diagonal_and_of_one_is_the_corner() -> None:
    assert lorenz(np.full(50, 3)) == pytest.approx(np.linspace(0, 1, 101))
    corner = lorenz(np.array([0] * 99 + [7]))
    assert corner[99] == 0 and corner[100] == 1
    assert lorenz(np.zeros(4, np.int64)) == [0.0] * 101


def test_map_keeps_distances_of_a_plane_and_leaves_the_empty_out() -> None:
    angle = np.linspace(0, 5, 12)
    vectors = np.zeros((13, 3), np.float32)
    vectors[:12, :2] = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    sids = a.SemanticIds(
        codes=np.stack([np.arange(13), np.zeros(13)], axis=1).astype(np.int32),
        codebook_sizes=np.array([13, 1], np.int32),
        codebooks=np.zeros((14, 3), np.float32),
    )
    items = Vocabulary.of([f"i{k:02d}" for k in range(13)])
    titles = np.array([f"<b>{k}" for k in range(13)], object)
    found = catalog_map(a.ItemEmbeddings(vectors), sids, items, titles, 0)
    assert [point["item"] for point in found["points"]] == [f"i{k:02d}" for k in range(12)]
    xy = np.array([[point["x"], point["y"]] for point in found["points"]])
    want = np.linalg.norm(vectors[:12, None] - vectors[None, :12], axis=2)
    assert np.linalg.norm(xy[:, None] - xy[None], axis=2) == pytest.approx(want, abs=1e-3)
    assert sum(found["explained"]) == pytest.approx(1) and found["points"][3]["sid"] == "3.0"
    figure = plots.catalog_plot(found)
    assert figure.data[0].text[1] == "&lt;b&gt;1<br>1.0"
    few = catalog_map(a.ItemEmbeddings(vectors), sids, items, titles, 0, n_points=5)
    assert len(few["points"]) <= 5 and few["items"] == 13


def stage(key: str, verb: str, *parents: str) -> StageExtra:
    return {
        "stage": key,
        "verb": verb,
        "parents": list(parents),
        "seconds": 1.0,
        "fingerprint": key[:2] * 8,
        "peak_bytes": 0,
    }


def test_lineage_draws_seeds_as_one_and_children_right_of_parents() -> None:
    made = lineage(
        [
            stage("dataset", "prepare"),
            stage("labels/gpl", "label", "dataset"),
            stage("rankers/gpl/seed0", "train", "dataset", "labels/gpl"),
            stage("rankers/gpl/seed1", "train", "dataset", "labels/gpl"),
        ]
    )
    assert made is not None
    assert [node.name for node in made.nodes] == ["dataset", "gpl", "gpl"]
    assert [verb for _, verb in made.heads] == ["prepare", "label", "train"]
    ranker = made.nodes[-1]
    assert ranker.mark.startswith("2 seeds") and ranker.key == "rankers/gpl/seed0"
    x_of = {node.key: node.x for node in made.nodes}
    assert x_of["dataset"] < x_of["labels/gpl"] < x_of["rankers/gpl/seed0"]
    assert len(made.edges) == 2  # the dataset is behind the labels: no line of its own to gpl
    assert made.width > max(x_of.values()) + 100


def test_no_lineage_without_parents() -> None:
    assert lineage([{"stage": "dataset", "seconds": 1.0, "fingerprint": "ab"}]) is None
    assert lineage([]) is None


def test_data_card_by_hand() -> None:
    card = data_card(tiny.dataset())
    facts = dict(map(tuple, card["facts"]))
    assert (facts["users"], facts["items"]) == ("3", "4")
    assert facts["exposures, train"] == "3 rows, 66.7% clicked"
    assert facts["exposures, test"] == "1 rows"  # its click is unknown
    assert facts["pool unexposed, test"] == "3 rows, 33.3% clicked"
    assert facts["candidates with known truth"] == "6"
    assert facts["item features"] == "kind, price" and facts["user features"] == "none"
    assert card["notes"] == ["made by hand"]


def test_model_card_says_what_it_learned_from() -> None:
    config = {"model": "two-tower", "use_history": True, "pseudo_weight": 0.5}
    card = model_card("gpl", config, [{}, {}], 1234, [0, 1], tiny.labels())
    facts = dict(map(tuple, card["facts"]))
    assert facts["parameters"] == "1,234" and facts["reads"].startswith("history")
    assert facts["trained on"] == "exposed clicks and 2 pseudo-labels (gpl), weight 0.5"
    plain = dict(map(tuple, model_card("x", config, [], 1, [0], None)["facts"]))
    assert plain["trained on"] == "exposed clicks alone"
    counted = dict(map(tuple, model_card("x", {"use_popularity": True}, [], 1, [0], None)["facts"]))
    assert counted["reads"] == "training exposures of the item, features of the log"
