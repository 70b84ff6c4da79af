import sys

import numpy as np
import pytest

from prerank import memory

MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="the measure starts anew on Linux only")
def test_peak_counts_from_the_reset() -> None:
    memory.reset_peak()
    before = memory.peak_bytes()
    block = np.ones(64 * MIB, dtype=np.uint8)
    assert memory.peak_bytes() >= before + 60 * MIB
    del block
    memory.reset_peak()
    assert memory.peak_bytes() < before + 32 * MIB


def test_without_the_kernels_files_the_whole_life_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setattr(memory, "STATUS", memory.Path("/nowhere"))
    monkeypatch.setattr(memory, "CLEAR", memory.Path("/nowhere/either"))
    memory.reset_peak()
    assert memory.peak_bytes() > MIB
