"""The contract checks: our own parts keep the promises, and each broken promise is noticed."""

from pathlib import Path
from typing import Any

import pytest

from prerank.embeddings.config import EncodeConfig
from prerank.errors import ConfigError
from prerank.labels.config import LabelConfig
from prerank.ranking.config import TrainConfig
from prerank.testing import check_encoder, check_label_source, check_pre_ranker


@pytest.mark.parametrize("encoder", ["lsa", "given"])
def test_our_encoders(encoder: Any) -> None:
    check_encoder(EncodeConfig(encoder=encoder, embedding_dim=8))


def test_our_label_source() -> None:
    check_label_source(LabelConfig(source="gpl"))


@pytest.mark.parametrize("model", ["two-tower", "cold"])
def test_our_pre_rankers(model: Any) -> None:
    check_pre_ranker(TrainConfig(model=model, hidden=(8,), embedding_dim=8, n_heads=2))


def broken(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> str:
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    return f"{name}:f"


@pytest.mark.parametrize(
    ("body", "promise"),
    [
        ("return np.random.default_rng().normal(size=(n, 4))", "same catalog and seed"),
        ("return np.random.default_rng(seed).normal(size=(n, 4))", "equal content"),
        ("return np.ones((n, 4))", "other content"),
        ("catalog.text[3] = 'x'; return np.ones((n, 4))", "changed the catalog"),
    ],
)
def test_broken_encoders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, promise: str
) -> None:
    head = "import numpy as np\ndef f(catalog, options, seed):\n    n = len(catalog)\n    "
    name = f"broken_encoder_{abs(hash(body))}"
    plugin = broken(tmp_path, monkeypatch, name, head + body)
    with pytest.raises(AssertionError, match=promise):
        check_encoder(EncodeConfig(encoder="plugin", plugin=plugin))


@pytest.mark.parametrize(
    ("config", "promise"),
    [
        ({"source": "truth"}, "must not depend on"),
        ({"source": "unlabeled"}, "every pair abstains"),
    ],
)
def test_sources_that_no_method_may_learn_from(config: dict[str, Any], promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_label_source(LabelConfig.parse(config))


MODEL = """
import torch
from prerank.ranking.two_tower import TwoTower
class Broken(TwoTower):
    def combine(self, user_parts, item_parts):
        logits = super().combine(user_parts, item_parts)
        {combine}
def f(config, inputs, context):
    model = Broken(config, inputs)
    {build}
    return model
"""


@pytest.mark.parametrize(
    ("combine", "build", "promise"),
    [
        ("return logits - logits.mean(1, keepdim=True)", "pass", "other candidates"),
        ("return logits + torch.arange(logits.shape[1])", "pass", "order of the candidates"),
        ("return logits + 1", "pass", "same logits"),
        ("return logits", "model.register_buffer('table', torch.zeros(9))", "persistent=False"),
    ],
)
def test_broken_pre_rankers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, combine: str, build: str, promise: str
) -> None:
    name = f"broken_model_{abs(hash((combine, build)))}"
    plugin = broken(tmp_path, monkeypatch, name, MODEL.format(combine=combine, build=build))
    with pytest.raises(AssertionError, match=promise):
        check_pre_ranker(TrainConfig(model="plugin", plugin=plugin, hidden=(8,), embedding_dim=8))


OUTPUTS = """
import torch
from prerank.ranking.two_tower import TwoTower
class Broken(TwoTower):
    def outputs(self, user_S, item_B, item_T, offsets_S1{more}):
        found = super().outputs(user_S, item_B, item_T, offsets_S1{given})
        return found[0] + {add}, found[1]
def f(config, inputs, context):
    return Broken(config, inputs)
"""


@pytest.mark.parametrize(
    ("more", "given", "add", "error", "promise"),
    [
        (", states=None", ", states", "(states is not None)", AssertionError, "share a state"),
        ("", "", "0", ConfigError, "does not take `states`"),
    ],
)
def test_a_pre_ranker_must_know_rows_that_share_a_user(  # type: ignore[no-untyped-def]
    tmp_path: Path, monkeypatch, more: str, given: str, add: str, error: Any, promise: str
) -> None:
    text = OUTPUTS.format(more=more, given=given, add=add)
    plugin = broken(tmp_path, monkeypatch, f"broken_outputs_{len(more)}", text)
    with pytest.raises(error, match=promise):
        check_pre_ranker(TrainConfig(model="plugin", plugin=plugin, hidden=(8,), embedding_dim=8))
