"""One sound bundle, to be damaged or served."""

from __future__ import annotations

from pathlib import Path

import pytest

from prerank.serving.bundle import Bundle
from serving.small_run import make_bundle, make_run, make_world


@pytest.fixture(scope="session")
def sound_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "small", make_world())


@pytest.fixture(scope="session")
def sound_bundle(sound_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(sound_run, tmp_path_factory.mktemp("bundles") / "gpl", "gpl")
