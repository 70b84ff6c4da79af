"""The own-logs guide is executed as it is written."""

import os
import re
import subprocess
import sys
from pathlib import Path

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "own-logs.md"


def test_own_logs_guide(tmp_path: Path) -> None:
    blocks = re.findall(r"```(\w+)\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    python, toml = (next(text for kind, text in blocks if kind == k) for k in ("python", "toml"))
    (tmp_path / "make_logs.py").write_text(python)
    (tmp_path / "mine.toml").write_text(toml + "\n[finetune]\nepochs = 1\n[train]\nepochs = 1\n")
    commands = [line for kind, text in blocks if kind == "bash" for line in text.splitlines()]
    assert len(commands) == 5
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    for command in commands:
        done = subprocess.run(
            command.split(), cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert (tmp_path / "runs" / "mine" / "report" / "report.html").stat().st_size > 10_000
