"""Shared by all tests: no progress output, hand-sized artifacts importable as ``tiny``, and one
small run with its bundle, made by the first test that asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from prerank import progress

if TYPE_CHECKING:
    from prerank.serving.bundle import Bundle

# A busy machine is no failure: no test is timed.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _silence() -> None:
    progress.silence()


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from serving.small_run import make_run, make_world

    return make_run(tmp_path_factory.mktemp("runs") / "small", make_world())


@pytest.fixture(scope="session")
def bundle(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from serving.small_run import make_bundle

    return make_bundle(run_folder, tmp_path_factory.mktemp("bundles") / "gpl", "gpl")
