"""Where clicks follow no content, GPL must show no gain; where they do, it must."""

from pathlib import Path
from typing import Any

import pytest

from prerank.artifacts import Record, Report
from prerank.pipeline import run_recipe
from prerank.recipe import parse_recipe
from prerank.store import load

METHODS: dict[str, Any] = {
    "gpl-shuffled": {"anchors": "shuffled", "label": {"skill_weight": False}},
    "gpl": {"anchors": "llm", "label": {"skill_weight": False}},
    "gpl-history": {"anchors": "history", "label": {"skill_weight": False}},
}


def _report(content_strength: float, folder: Path) -> Report:
    world = {"content_strength": content_strength, "n_users": 900, "n_items": 500}
    recipe = {
        "out": str(folder),
        "seeds": [0, 1],
        "prepare": {"world": world},
        "tokenize": {"codebook_size": 16},
        "finetune": {"hidden_size": 64, "epochs": 6},
        "generate": {"n_anchors": 20},
        "train": {"pseudo_weight": 3.0, "epochs": 4, "threads": 1},
        "evaluate": {"baselines": ["gpl-shuffled"], "n_resamples": 200},
        "methods": METHODS,
    }
    run_recipe(parse_recipe(recipe))
    report: Report = load(folder / "run" / "report", Report)
    return report


def _gauc(records: tuple[Record, ...], method: str) -> Record:
    (found,) = [
        r
        for r in records
        if (r.method, r.pool, r.segment, r.metric) == (method, "unexposed", "all", "gauc")
    ]
    return found


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return _report(0.0, tmp_path_factory.mktemp("without"))


@pytest.fixture(scope="module")
def with_content(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return _report(3.5, tmp_path_factory.mktemp("with"))


@pytest.mark.parametrize("anchors", ["llm", "history"])
def test_without_content_the_match_says_nothing(without: Report, anchors: str) -> None:
    assert _gauc(without.records, f"match {anchors}").value == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("method", ["gpl", "gpl-history"])
def test_without_content_gpl_gains_nothing_over_shuffled_anchors(
    without: Report, method: str
) -> None:
    gain = _gauc(without.differences, f"{method} - gpl-shuffled")
    assert gain.low is not None and gain.low <= 0.005


@pytest.mark.parametrize("anchors", ["llm", "history"])
def test_with_content_the_match_tells_interest(with_content: Report, anchors: str) -> None:
    low = _gauc(with_content.records, f"match {anchors}").low
    assert low is not None and low > 0.53


@pytest.mark.parametrize("method", ["gpl", "gpl-history"])
def test_with_content_gpl_beats_shuffled_anchors(with_content: Report, method: str) -> None:
    gain = _gauc(with_content.differences, f"{method} - gpl-shuffled")
    assert gain.value is not None and gain.value > 0
