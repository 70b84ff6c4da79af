"""The small run and its bundles, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from prerank.serving.bundle import Bundle
from serving.small_run import make_bundle, make_run, make_world


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "small", make_world())


@pytest.fixture(scope="session")
def bundle(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(run_folder, tmp_path_factory.mktemp("bundles") / "gpl", "gpl")


@pytest.fixture(scope="session")
def exposed_bundle(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundles") / "exposed"
    return make_bundle(run_folder, out, "exposed-only")
