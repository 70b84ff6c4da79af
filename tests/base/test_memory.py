import mmap
import sys

import pytest

from prerank import memory

MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="the measure starts anew on Linux only")
def test_peak_counts_from_the_reset() -> None:
    memory.reset_peak()
    before = memory.peak_bytes()
    # New pages, as malloc may hand out what the process holds; many, as allocators of other
    # tests give some back meanwhile.
    block = mmap.mmap(-1, 256 * MIB)
    for at in range(0, 256 * MIB, mmap.PAGESIZE):
        block[at] = 1
    assert memory.peak_bytes() >= before + 128 * MIB
    block.close()
    memory.reset_peak()
    assert memory.peak_bytes() < before + 128 * MIB


def test_without_the_kernels_files_the_whole_life_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setattr(memory, "STATUS", memory.Path("/nowhere"))
    monkeypatch.setattr(memory, "CLEAR", memory.Path("/nowhere/either"))
    memory.reset_peak()
    assert memory.peak_bytes() > MIB
