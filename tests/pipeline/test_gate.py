"""Labels whose relevance shows no skill get no weight: who reads log or report must see it."""

from pathlib import Path
from typing import Any

import pytest

from prerank import progress
from prerank import store as stores
from prerank.artifacts import Report
from prerank.evaluation.summary import summarise
from prerank.evaluation.view import view
from prerank.pipeline import Run, run_recipe
from prerank.recipe import parse_recipe

VALUES: dict[str, Any] = {
    "prepare": {"world": {"n_users": 60, "n_items": 80, "requests_per_user": 2.0}},
    "encode": {"embedding_dim": 12},
    "tokenize": {"codebook_size": 8},
    "train": {"epochs": 1},
    "evaluate": {"n_resamples": 20, "controls": []},
    "seeds": [0],
    "methods": {
        "exposed-only": {"label": {"source": "none"}},
        "gpl": {"anchors": "random"},
        "gpl-open": {"anchors": "random", "label": {"skill_weight": False}},
    },
}


def test_a_closed_gate_is_told_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = parse_recipe({**VALUES, "out": str(tmp_path)})
    progress.silence(False)
    run_recipe(recipe)
    told = [line for line in capsys.readouterr().err.splitlines() if "no skill" in line]
    assert told == ["label: gpl: no skill shown on held-out clicks, its labels get no weight"]
    report = stores.load(Run(recipe).path("report"), Report)
    assert list(report.extra["unearned"]) == ["gpl"]
    assert report.extra["unearned"]["gpl"]["skill_low"] <= 0
    assert any("The labels of gpl (skill " in sentence for sentence in summarise(view(report)))
    gap = view(report).difference("gpl", "unexposed", "all", "gauc")
    assert gap is not None and gap.value == 0
