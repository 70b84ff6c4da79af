"""What labels say without a pre-ranker: anchors matched as the methods match them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prerank.artifacts import InterestAnchors
from prerank.labels.matching import Pooling, match_pairs
from prerank.pipeline import Run, label_scores, run_recipe
from prerank.recipe import Recipe, parse_recipe

WEIGHTED = {"match": "probability-weighted", "temperature": 0.05}
VALUES: dict[str, Any] = {
    "prepare": {"world": {"n_users": 60, "n_items": 80, "requests_per_user": 2.0}},
    "encode": {"embedding_dim": 12},
    "tokenize": {"codebook_size": 8},
    "finetune": {"hidden_size": 16, "n_layers": 1, "n_heads": 2, "epochs": 1},
    "generate": {"n_anchors": 4, "beam_width": 12},
    "train": {"epochs": 1},
    "evaluate": {"n_resamples": 20},
    "seeds": [0],
    "methods": {
        "exposed-only": {"label": {"source": "none"}},
        "gpl": {"anchors": "llm"},
        "gpl-weighted": {"anchors": "llm", "n_anchors": 10, "label": WEIGHTED},
        "gpl-joined": {"anchors": "llm+history", "n_anchors": 3, "label": {"match": "top-m"}},
    },
    "variants": {
        "soft": {"label": {"match": "log-sum-exp"}},
        "fewer": {"generate": {"n_anchors": 2}},
        "light": {"train": {"pseudo_weight": 0.5}},
    },
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe: Recipe = parse_recipe({**VALUES, "out": str(tmp_path_factory.mktemp("scores"))})
    run_recipe(recipe)
    return Run(recipe)


def test_each_way_to_match_is_told_once_and_by_what_it_reads(finished: Run) -> None:
    found = label_scores(finished, finished.dataset.pools)
    assert set(found) == {
        "match popularity",
        "match llm-4",
        "match llm, probability-weighted 0.05",
        "match llm-3",
        "match history",
        "match llm+history, top-m 3",
        "match sum of llm+history",
        "match llm-4, log-sum-exp 0.1@soft",
        "match llm-2@fewer",
    }
    anchors = finished.load("anchors/llm", InterestAnchors)
    assert np.diff(anchors.offsets).max() == 10
    pools = finished.dataset.pools
    for title, n, way in (
        ("llm, probability-weighted 0.05", 10, Pooling("probability-weighted", temperature=0.05)),
        ("llm-4", 4, Pooling()),
        ("llm-4, log-sum-exp 0.1@soft", 4, Pooling("log-sum-exp")),
        ("llm-2@fewer", 2, Pooling()),
    ):
        match = match_pairs(pools.user, pools.item, finished.space, anchors.first(n), way)
        expected = np.nan_to_num(match.relevance, nan=-1)
        np.testing.assert_array_equal(found[f"match {title}"][0], expected)
    parts = found["match llm-3"] + found["match history"]
    np.testing.assert_allclose(found["match sum of llm+history"], parts, rtol=1e-6)


def test_anchors_that_are_the_first_of_others_have_a_report_of_their_own(finished: Run) -> None:
    import json

    folder = Path(finished.recipe.folder) / "anchors"
    for name, n in (("llm", 10), ("llm-4", 4), ("llm-3", 3)):
        quality = json.loads((folder / name / "quality.json").read_text())
        assert quality["anchors_per_user"] == n
