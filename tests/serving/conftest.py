"""The bundle of the baseline; the small run and GPL's bundle are shared with other tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from prerank.serving.bundle import Bundle
from serving.small_run import make_bundle


@pytest.fixture(scope="session")
def exposed_bundle(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundles") / "exposed"
    return make_bundle(run_folder, out, "exposed-only")
