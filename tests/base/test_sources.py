"""A changed log is noticed, an unchanged one is not read again, and what runs write is no log."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from prerank import sources
from prerank.errors import ConfigError
from prerank.sources import source_files


def test_a_log_that_changes_in_its_middle_alone_is_another_log(tmp_path: Path) -> None:
    click = np.random.default_rng(0).integers(2, size=400_000).astype(np.int8)
    log = tmp_path / "exposures.parquet"
    more = {"noise": np.random.default_rng(1).random(400_000)}  # more than 2 MiB around the clicks

    def written() -> bytes:
        frame = pl.DataFrame({"before": more["noise"], "click": click, "after": more["noise"]})
        frame.write_parquet(log, compression="uncompressed", statistics=False)
        return log.read_bytes()

    first = written()
    before = source_files(str(tmp_path), tmp_path / "runs" / "a", [])
    click[:] = 1 - click
    second = written()
    assert (len(first), first[-(1 << 20) :]) == (len(second), second[-(1 << 20) :])
    assert source_files(str(tmp_path), tmp_path / "runs" / "a", []) != before


def test_hashes_are_remembered_while_size_and_moment_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, folder = tmp_path / "logs" / "a.csv", tmp_path / "run"
    log.parent.mkdir()
    log.write_text("user,item\n")
    os.utime(log, ns=(10**18, 10**18))
    made = source_files(str(log.parent), folder, [])
    assert not folder.exists()  # planning writes nothing where no run is
    (folder / ".work").mkdir(parents=True)
    assert source_files(str(log.parent), folder, []) == made

    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} is read again")

    with monkeypatch.context() as patch:
        patch.setattr(sources, "hash_file", refuse)
        assert source_files(str(log.parent), folder, []) == made
        os.utime(log, ns=(10**18 + 1, 10**18 + 1))
        with pytest.raises(AssertionError, match="read again"):
            source_files(str(log.parent), folder, [])
    # A file of this moment may still be changing: it is hashed, and not remembered.
    os.utime(log)
    assert source_files(str(log.parent), folder, []) == made
    assert json.loads((folder / ".work" / "sources.json").read_text()) == {}
    for text in (
        "no json",
        "",
        "[1]",
        f'{{"{log}": 1}}',
        f'{{"{log}": [1, 2]}}',
        '{"a": [1, 2, {}]}',
    ):
        (folder / ".work" / "sources.json").write_text(text)
        assert source_files(str(log.parent), folder, []) == made


def test_what_runs_write_is_no_log(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item\n")
    for folder in ("runs/a/dataset", "runs/b", "cache"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.parquet").write_text("x")
    made = [tmp_path / "runs", tmp_path / "cache"]
    listed = source_files(str(tmp_path), tmp_path / "runs" / "a", made)
    assert [name for name, _, _ in listed] == ["items.csv"]
    # Runs beside the logs: those of others cannot be told from logs, its own can.
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.parquet").write_text("x")
    listed = source_files(str(tmp_path), tmp_path / "c", [tmp_path])
    assert "c/x.parquet" not in [name for name, _, _ in listed] and len(listed) == 4


def test_logs_below_the_place_of_runs_are_logs(tmp_path: Path) -> None:
    """`out = "."` and `path = "logs"`: the logs lie in the folder that runs are written to."""
    logs, run = tmp_path / "logs", tmp_path / "mine"
    for folder in (logs, run):
        folder.mkdir()
        (folder / "items.csv").write_text("item\n")
    first = source_files(str(logs), run, [tmp_path, tmp_path / "cache"])
    assert [name for name, _, _ in first] == ["items.csv"]
    (logs / "items.csv").write_text("item\nbook\n")
    assert source_files(str(logs), run, [tmp_path]) != first


def test_linked_folders_of_logs_are_read_and_links_back_end(tmp_path: Path) -> None:
    logs, elsewhere = tmp_path / "logs", tmp_path / "disk"
    logs.mkdir()
    elsewhere.mkdir()
    (elsewhere / "part-0.csv").write_text("user,item\n")
    (logs / "exposures").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(logs)
    listed = source_files(str(logs), tmp_path / "run", [])
    assert [name for name, _, _ in listed] == ["exposures/part-0.csv"]
    # A folder of two names has both: which is listed first is up to the disk.
    (logs / "candidates").symlink_to(elsewhere)
    listed = source_files(str(logs), tmp_path / "run", [])
    assert [name for name, _, _ in listed] == ["candidates/part-0.csv", "exposures/part-0.csv"]


def test_processes_that_remember_at_once_do_not_meet(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from prerank.store import write_whole\n"
        "for n in range(300): write_whole(pathlib.Path(sys.argv[1]), str(n) * 1000)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "sources.json")]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [writer.communicate()[1] for writer in writers] == [""] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["sources.json"]


def test_a_memory_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    log, folder = tmp_path / "logs.csv", tmp_path / "run"
    log.write_text("user,item\n")
    os.utime(log, ns=(10**18, 10**18))
    (folder / ".work" / "sources.json").mkdir(parents=True)  # a folder in its place
    assert len(source_files(str(log), folder, [])) == 1


def test_no_logs() -> None:
    assert source_files("", Path("runs/a"), []) == []
    with pytest.raises(ConfigError, match="the data is not there"):
        source_files("nowhere", Path("runs/a"), [])
