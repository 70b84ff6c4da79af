"""Shared by all tests: no progress output, and hand-sized artifacts importable as ``tiny``."""

import pytest
from hypothesis import settings

from prerank import progress

# A busy machine is no failure: no test is timed.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _silence() -> None:
    progress.silence()
