"""Shared by all tests: no progress output, and hand-sized artifacts importable as ``tiny``."""

import pytest

from prerank import progress


@pytest.fixture(autouse=True)
def _silence() -> None:
    progress.silence()
