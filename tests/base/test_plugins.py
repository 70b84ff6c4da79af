"""Functions named in a recipe: what is found, what is refused, what a broken one is told."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prerank import plugins, testing
from prerank.embeddings.config import EncodeConfig
from prerank.embeddings.encode import encode
from prerank.errors import ConfigError, DataError
from prerank.labels.config import LabelConfig
from prerank.labels.label import label
from prerank.recipe import parse_recipe


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what writes a module, importable as its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)

    return make


def test_find(write: Any) -> None:
    write("found_plugin", "def f(): return 3\nx = 1\n")
    assert plugins.find("found_plugin:f", "encode.plugin")() == 3
    for path, message in [
        ("found_plugin:g", "no such function"),
        ("found_plugin:x", "cannot be called"),
        ("absent_plugin:f", "cannot be imported"),
        ("found_plugin.sub:f", "cannot be imported"),
    ]:
        with pytest.raises(ConfigError, match=message):
            plugins.find(path, "encode.plugin")


def test_the_mark_follows_the_source(write: Any) -> None:
    write("marked_plugin", "def f(): return 3\n")
    before = plugins.mark("marked_plugin:f", "x")
    assert before == plugins.mark("marked_plugin:f", "x")
    write("marked_plugin", "def f(): return 4\n")
    assert plugins.mark("marked_plugin:f", "x") != before
    with pytest.raises(ConfigError, match="cannot be imported"):
        plugins.mark("absent_plugin:f", "x")


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("encode", {"encoder": "plugin"}, "go together"),
        ("encode", {"plugin": "a:b"}, "go together"),
        ("label", {"source": "plugin", "plugin": "os.system"}, "package.module:function"),
        ("train", {"model": "plugin", "plugin": "a:b c"}, "package.module:function"),
        ("train", {"options": {"x": 1}}, "none is named"),
    ],
)
def test_bad_settings_are_told(section: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_recipe({section: values})


BROKEN_ENCODERS = {
    "rows": "return np.ones((3, 2))",
    "nan": "return np.full((len(catalog), 2), np.nan)",
    "text": "return catalog.title",
}


def test_an_encoder_that_returns_no_vectors_is_told(write: Any) -> None:
    head = "import numpy as np\ndef encode(catalog, options, seed):\n    "
    dataset = testing.small_dataset()
    for name, body in BROKEN_ENCODERS.items():
        write(f"encoder_{name}", head + body)
        with pytest.raises(DataError, match="no vectors"):
            encode(dataset, EncodeConfig(encoder="plugin", plugin=f"encoder_{name}:encode"), 0)


def test_a_label_source_that_returns_no_labels_is_told(write: Any) -> None:
    head = "import numpy as np\ndef label(data, space, anchors, pairs, options, seed):\n    "
    dataset = testing.small_dataset()
    space = testing.small_embeddings(dataset)
    for name, body in {
        "high": "n = len(pairs); return np.full(n, 1.5), np.ones(n)",
        "nan": "n = len(pairs); return np.full(n, np.nan), np.ones(n)",
        "short": "n = len(pairs); return np.ones(n - 1), np.ones(n - 1)",
        "negative": "n = len(pairs); return np.ones(n), -np.ones(n)",
    }.items():
        write(f"source_{name}", head + body)
        config = LabelConfig(source="plugin", plugin=f"source_{name}:label")
        with pytest.raises(DataError, match="no pseudo-labels"):
            label(dataset, space, None, config, 0)


def test_a_label_source_sees_no_answers(write: Any) -> None:
    write(
        "peeking",
        "import numpy as np\n"
        "from prerank.artifacts import TEST\n"
        "def label(data, space, anchors, pairs, options, seed):\n"
        "    assert np.isnan(pairs.truth).all() and np.isnan(data.candidates.truth).all()\n"
        "    assert len(data.pools) == 0 and not (data.exposures.split == TEST).any()\n"
        "    return np.full(len(pairs), options['value']), np.ones(len(pairs))\n",
    )
    dataset = testing.small_dataset()
    assert np.isfinite(dataset.candidates.truth).any() and len(dataset.pools)
    config = LabelConfig(source="plugin", plugin="peeking:label", options={"value": 0.25})
    labels = label(dataset, testing.small_embeddings(dataset), None, config, 0)
    assert set(labels.label) == {0.25} and labels.source == "peeking:label"
