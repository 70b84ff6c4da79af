"""Progress as a person meets it (a real pseudo-terminal) and as a log file meets it (a pipe)."""

import json
import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path

import pyte
import pytest

from prerank import progress

NESTED = """
import sys, time
from prerank import progress
progress.PLAIN_INTERVAL_S = progress.LIVE_INTERVAL_S = 0.0
def work():
    for step in range(2):
        for batch in progress.track(range(4), "batches"):
            time.sleep(0.12)
        progress.log(f"note {step}")
        yield step
for step in progress.stage(work(), "train", 2):
    progress.log_step(f"step {step}")
for step in progress.stage(iter(["x"]), "label", 1):
    pass
for k in progress.track(range(3), "simulate days"):
    break
print("data")
"""


def on_a_terminal(command: list[str], cwd: Path) -> tuple[str, str, int]:
    """Return what a command wrote to stdout (a pipe) and to stderr (a pseudo-terminal)."""
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "NO_COLOR": "1"}
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=child, stdin=child
    )
    os.close(child)
    seen: list[bytes] = []

    def read() -> None:
        try:
            while part := os.read(parent, 65536):
                seen.append(part)
        except OSError:  # Linux says so when the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    stdout = process.communicate(timeout=120)[0].decode()
    reader.join(10)
    os.close(parent)
    return stdout, b"".join(seen).decode(), process.returncode


def kept(shown: str) -> list[str]:
    """Return the lines that stand on the terminal in the end."""
    screen = pyte.Screen(100, 40)
    pyte.Stream(screen).feed(shown)
    return [line.rstrip() for line in screen.display if line.strip()]


def test_a_terminal_keeps_one_line_a_stage(tmp_path: Path) -> None:
    stdout, shown, code = on_a_terminal([sys.executable, "-c", NESTED], tmp_path)
    assert code == 0 and stdout == "data\n"
    lines = kept(shown)
    assert [re.sub(r"\d\.\d", "N", line) for line in lines] == [
        "note 0",
        "note 1",
        "train          N s, 2 artifacts",
        "label          N s",
    ]
    # While it runs: how many of all, the rate, the time left.
    assert re.search(r"train .* 0:00:0\d 1/2, batches [1-3]/4, [\d.]+/s, 0:00:0\d left", shown)


def test_a_pipe_gets_plain_lines(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NESTED], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.stdout == "data\n" and "\x1b" not in done.stderr and "\r" not in done.stderr
    lines = done.stderr.splitlines()
    assert [line for line in lines if "step" in line] == ["step 0", "step 1"]
    assert re.search(r"^train 1/2, batches 2/4, [\d.]+/s, 0:00:00 left$", done.stderr, re.MULTILINE)


def test_prerank_on_a_terminal(tmp_path: Path) -> None:
    world = {"prepare.world.n_users": 60, "prepare.world.n_items": 80}
    overrides = [part for key, n in world.items() for part in ("--set", f"{key}={n}")]
    (tmp_path / "r.toml").write_text("")
    command = [sys.executable, "-m", "prerank", "prepare", "r.toml", "--json", *overrides]
    stdout, shown, code = on_a_terminal(command, tmp_path)
    assert code == 0
    assert json.loads(stdout)["steps"][0]["status"] == "made"
    assert any(re.fullmatch(r"prepare +\d+\.\d s", line) for line in kept(shown))


@pytest.mark.parametrize(
    ("counts", "share"),
    [([(2, 10)], 0.2), ([(2, 10), (1, 4)], 0.225), ([(0, 2), (3, None)], 0.0), ([(4, 4)], 1.0)],
)
def test_share_of_nested_loops(counts: list[tuple[int, int | None]], share: float) -> None:
    loops = [progress._Loop("x", total, False, done) for done, total in counts]
    assert progress._share(loops) == pytest.approx(share)


def test_a_loop_left_early_is_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    progress.silence(False)
    for _ in progress.track(range(3), "outer"):
        for _ in progress.track(range(3), "inner"):
            break
        assert [loop.description for loop in progress._screen.loops] == ["outer"]
        break
    assert progress._screen.loops == []
    with pytest.raises(ZeroDivisionError):
        for _ in progress.track(range(3), "outer"):
            1 / 0  # noqa: B018
    assert progress._screen.loops == []
