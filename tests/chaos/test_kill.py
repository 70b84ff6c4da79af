"""Kill -9, SIGTERM, a full disk, a read-only one, a clock that goes backwards.

``PRERANK_KILLS=50 pytest tests/chaos/test_kill.py`` kills more often than the ten times of every
day; `benchmarks/run_chaos.py` writes down how fifty went.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chaos.harness import (
    Zygote,
    campaign,
    check_whole,
    choose,
    kind_of,
    make_stale,
    moments_of,
)
from chaos.small import fingerprints, hashes

KILLS = int(os.environ.get("PRERANK_KILLS", "10"))
AT_ONCE = 10


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    found = Zygote(tmp_path_factory.mktemp("zygote"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def truth(zygote: Zygote) -> tuple[Path, list[str]]:
    """The undisturbed run's folder, and all its moments."""
    out = zygote.folder / "truth"
    moments = moments_of(zygote, out, zygote.folder / "moments")
    return out / "small", moments


def test_equal_bytes_in_another_process(truth: tuple[Path, list[str]], small_run: Path) -> None:
    assert fingerprints(truth[0]) == fingerprints(small_run)
    assert hashes(truth[0]) == hashes(small_run)


def test_the_moments_are_those_that_matter(truth: tuple[Path, list[str]]) -> None:
    kinds = {kind_of(name) for name in truth[1]}
    assert {"begin", "made", "half of manifest", "whole", "published"} <= kinds
    assert {"before anchors", "after anchors", "half of state", "half of recipe"} <= kinds
    assert sum(name.startswith("before anchors-") for name in truth[1]) == 6  # each shard


@pytest.mark.parametrize("number", range(max(1, KILLS // AT_ONCE)))
def test_killed_at_any_moment_it_ends_alike(
    zygote: Zygote, truth: tuple[Path, list[str]], tmp_path: Path, number: int
) -> None:
    chosen = choose(truth[1], min(KILLS, AT_ONCE), seed=number)
    found = campaign(zygote, tmp_path, chosen, truth[0])
    assert not found.not_reached and len(found.kills) == len(chosen)
    assert found.same_fingerprints and found.same_bytes
    assert found.left_over == []


REPLACING = {
    True: [
        "before exchange [dataset]",
        "after exchange [semantic_ids]",  # the old one lies under the temporary name
        "after exchange [report]",
    ],
    False: [
        "after folder old [dataset]",  # the old one has been moved aside, the new one not there yet
        "before folder new [semantic_ids]",
        "before folder old [anchors/llm]",
        "after folder new [report]",
    ],
}
"""Whether the disk can exchange two names -> moments at which an artifact is replaced."""


@pytest.mark.parametrize("exchange", REPLACING)
def test_killed_while_an_older_artifact_is_replaced(
    zygote: Zygote, truth: tuple[Path, list[str]], tmp_path: Path, exchange: bool
) -> None:
    shutil.copytree(truth[0], tmp_path / "small")
    make_stale(tmp_path / "small")
    found = campaign(zygote, tmp_path, REPLACING[exchange], truth[0], exchange=exchange)
    assert not found.not_reached
    assert found.same_fingerprints and found.same_bytes and not found.left_over


def test_sigterm_leaves_nothing_half_written_and_a_clock_may_go_backwards(
    zygote: Zygote, truth: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "small"
    moments = ("half of manifest [semantic_ids]", "after anchors-00002.safetensors [anchors/llm]")
    for moment in moments:
        status = zygote.run(tmp_path, kill_at=moment, signal=signal.SIGTERM, clock="back")
        assert status == 128 + signal.SIGTERM
        assert "stopped; finished work is kept" in zygote.log and "Traceback" not in zygote.log
        left = {path.name.partition("-")[0] for path in (folder / ".work").iterdir()}
        assert "new" not in left and "old" not in left
        check_whole(folder)
    assert zygote.run(tmp_path, clock="back") == 0, zygote.log
    assert hashes(folder) == hashes(truth[0])
    made = [json.loads(file.read_text()) for file in folder.rglob("manifest.json")]
    assert all(values["seconds"] >= 0 for values in made)
    assert zygote.run(tmp_path) == 0
    assert zygote.log.count("done before") >= len(made) and "made" not in zygote.log


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Mount a small disk in memory at ``folder``; skip the test where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("a disk of a few kilobytes can be mounted by root only")
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(
    zygote: Zygote, truth: tuple[Path, list[str]], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "size=16k"):
        full = 0
        for size in (16, 300, 1000):
            remount(disk, f"size={size}k")
            status = zygote.run(disk)
            assert status in (0, 2, 3), zygote.log
            if status:
                full += 1
                assert "disk" in zygote.log and "hint: " in zygote.log, zygote.log
                assert "Traceback" not in zygote.log
            check_whole(disk / "small")
        assert full > 1
        remount(disk, "size=100m")
        assert zygote.run(disk) == 0, zygote.log
        assert hashes(disk / "small") == hashes(truth[0])


def test_a_read_only_disk_is_told_and_can_be_read(
    zygote: Zygote, truth: tuple[Path, list[str]], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "size=100m"):
        shutil.copytree(truth[0], disk / "small")
        remount(disk, "ro")
        assert zygote.run(disk) == 2
        assert "cannot be written" in zygote.log and "Read-only file system" in zygote.log
        assert "where: " in zygote.log and "must be: " in zygote.log and "hint: " in zygote.log
        for verb in ("show", "verify"):
            assert zygote.call([verb, str(disk / "small")]) == 0, zygote.log
        assert zygote.run(disk / "other") == 2
        assert "cannot be written" in zygote.log
