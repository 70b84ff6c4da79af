"""The number of an item's training exposures as a feature of its own."""

from dataclasses import replace

import numpy as np
import pytest

from prerank.artifacts import TRAIN, VALIDATION, Dataset, ItemEmbeddings
from prerank.errors import ArtifactError, DataError
from prerank.ranking.context import POPULARITY, as_read
from prerank.ranking.pre_ranker import PreRanker
from prerank.ranking.train import train


@pytest.fixture
def data(world) -> Dataset:  # type: ignore[no-untyped-def]
    """Of five rows item 0 has three in training and one in validation, item 1 one; no other any."""
    made = world()
    shown = made.exposures
    item = np.resize(np.array([0, 0, 0, 1, 0], np.int32), len(shown))
    split = np.resize(np.array([TRAIN] * 4 + [VALIDATION], np.int8), len(shown))
    return replace(made, exposures=replace(shown, item=item, split=split))


def test_it_is_the_logarithm_of_training_exposures(data: Dataset, small) -> None:  # type: ignore[no-untyped-def]
    assert as_read(data, small) is data
    read = as_read(data, small.model_copy(update={"use_popularity": True}))
    count = read.catalog.features.numeric[POPULARITY]
    n_train = int((data.exposures.split == TRAIN).sum())
    assert count[0] == pytest.approx(np.log1p(n_train - n_train // 4))
    assert count[1] == pytest.approx(np.log1p(n_train // 4))
    assert not count[2:].any()
    assert POPULARITY not in data.catalog.features.numeric


def test_items_alike_but_for_it_are_told_apart(data: Dataset, content, small, tmp_path) -> None:  # type: ignore[no-untyped-def]
    blind = small.model_copy(update={"use_item_id": False, "epochs": 1})
    same = ItemEmbeddings(np.repeat(content.vectors[:1], len(content.vectors), axis=0))
    features = replace(data.catalog.features, categorical={}, numeric={}, lists={}, vectors={})
    alike = replace(data, catalog=replace(data.catalog, features=features))
    before = train(alike, same, None, blind, seed=0).score([0], [[0, 1, 2]])[0]
    assert before[1] == before[2]
    config = blind.model_copy(update={"use_popularity": True})
    ranker = train(alike, same, None, config, seed=0)
    after = ranker.score([0], [[0, 1, 2]])[0]
    assert len(set(after.tolist())) == 3
    ranker.save(tmp_path)
    again = PreRanker.load(tmp_path, alike, same)
    np.testing.assert_array_equal(again.score([0], [[0, 1, 2]])[0], after)
    assert again.schema["items"]["numeric"] == [POPULARITY]


def test_a_feature_of_the_same_name_is_refused(data: Dataset, content, small) -> None:  # type: ignore[no-untyped-def]
    config = small.model_copy(update={"use_popularity": True, "epochs": 1})
    named = as_read(data, config)
    with pytest.raises(DataError, match=r"train\.use_popularity"):
        train(named, content, None, config, seed=0)


def test_it_loads_with_the_log_it_was_counted_in_only(data, content, small, tmp_path) -> None:  # type: ignore[no-untyped-def]
    shown = data.exposures
    half = {name: values[: len(shown) // 2] for name, values in shown.columns().items()}
    fewer = replace(data, exposures=replace(shown, **half))
    for on in (False, True):
        config = small.model_copy(update={"use_popularity": on, "epochs": 1})
        train(data, content, None, config, seed=0).save(tmp_path)
        if not on:
            PreRanker.load(tmp_path, fewer, content)
            continue
        with pytest.raises(ArtifactError, match="trained on other data"):
            PreRanker.load(tmp_path, fewer, content)


def test_a_saved_one_does_not_load_as_if_it_had_none(data, content, small, tmp_path) -> None:  # type: ignore[no-untyped-def]
    config = small.model_copy(update={"use_popularity": True, "epochs": 1})
    ranker = train(data, content, None, config, seed=0)
    ranker.save(tmp_path)
    about = tmp_path / "pre_ranker.json"
    about.write_text(about.read_text().replace('"use_popularity": true', '"use_popularity": false'))
    with pytest.raises(ArtifactError, match="trained on other data"):
        PreRanker.load(tmp_path, data, content)
