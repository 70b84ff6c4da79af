"""The tiny world of `ranking.worlds` as fixtures."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from prerank import artifacts as a
from prerank.ranking.config import TrainConfig
from ranking import worlds


@pytest.fixture
def world() -> Callable[..., a.Dataset]:
    return worlds.make_world


@pytest.fixture
def labels() -> Callable[..., a.PseudoLabels]:
    return worlds.make_labels


@pytest.fixture
def content() -> a.ItemEmbeddings:
    return worlds.make_content()


@pytest.fixture
def small() -> TrainConfig:
    return worlds.make_config()
