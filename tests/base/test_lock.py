"""The lock of a run's folder: it names its holder, and dies with it."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from prerank.errors import BusyError, ConfigError
from prerank.lock import alone, given_up_when_stopped, locked

HOLD = """
import sys, time
from pathlib import Path
from prerank.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_who_holds_it_and_a_killed_holder_blocks_nobody(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        with pytest.raises(BusyError) as told, locked(tmp_path):
            pass
        assert told.value.where == str(tmp_path) and told.value.exit_code == 2
        assert told.value.got.startswith(f"process {process.pid} on {os.uname().nodename}, since ")
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with locked(tmp_path):
        assert f'"pid": {os.getpid()}' in (tmp_path / ".work" / "lock").read_text()


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"pid": "x", "host": 1, "since": 2}'])
def test_a_strange_lock_file_is_no_obstacle(tmp_path: Path, text: str) -> None:
    process = holder(tmp_path)
    try:
        (tmp_path / ".work" / "lock").write_text(text)
        with pytest.raises(BusyError, match="has not written its name"), locked(tmp_path):
            pass
    finally:
        process.kill()
        process.communicate()
    (tmp_path / ".work" / "lock").write_text(text)
    with locked(tmp_path):
        pass


def test_after_an_error_nothing_more_is_begun() -> None:
    with ProcessPoolExecutor(1) as pool:
        wrong = pool.submit(int, "no number")
        rest = [pool.submit(time.sleep, 0.1) for _ in range(100)]
        with pytest.raises(ValueError, match="no number"), given_up_when_stopped(pool):
            wrong.result()
        assert sum(one.cancelled() for one in rest) > 90
        assert not any(one.running() for one in rest)


def test_leftovers_go_and_finished_parts_stay(tmp_path: Path) -> None:
    for name in ("new-1", "old-2", "anchors-llm-abc"):
        (tmp_path / ".work" / name).mkdir(parents=True)
    with locked(tmp_path):
        left = {path.name for path in (tmp_path / ".work").iterdir()}
    assert left == {"lock", "anchors-llm-abc"}


def test_a_work_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "new-precious").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".work").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is a link"), locked(tmp_path / "run"):
        pass
    assert (tmp_path / "elsewhere" / "new-precious").is_dir()


def test_a_place_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"), locked(tmp_path / "run"):
        pass


ALONE = """
import os, sys
from pathlib import Path
from prerank.lock import alone
for _ in range(40):
    with alone(Path(sys.argv[1]) / ".work" / "mine") as folder:
        mark = folder / str(os.getpid())
        mark.mkdir()
        assert [one.name for one in folder.iterdir()] == [mark.name], "not alone"
"""


def test_one_after_the_other_has_a_folder_alone_and_nothing_is_left(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ALONE, str(tmp_path)]
    those = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [one.communicate()[1] for one in those] == [""] * 4
    assert not list((tmp_path / ".work").iterdir())


def test_what_a_killed_one_left_is_the_next_ones_and_a_run_leaves_it_alone(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from prerank.lock import alone\n"
        "with alone(Path(sys.argv[1])) as folder: (folder / 'new-1').mkdir(); os._exit(9)"
    )
    folder = tmp_path / ".work" / "mine"
    done = subprocess.run([sys.executable, "-c", script, str(folder)], check=False)
    assert done.returncode == 9
    with locked(tmp_path), alone(folder) as same:
        assert [one.name for one in same.iterdir()] == ["new-1"]
    assert [one.name for one in (tmp_path / ".work").iterdir()] == ["lock"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".work").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="is a link"), alone(tmp_path / "run" / ".work" / "x"):
        pass
