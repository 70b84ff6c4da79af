"""The replay finds no skew where there is none, and skew where there is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prerank.errors import ArtifactError
from prerank.serving.bundle import Bundle
from prerank.serving.export import load_trained
from prerank.serving.skew import check_skew
from serving.servers import serving


def test_replay_through_a_running_server(bundle: Bundle, run_folder: Path, tmp_path: Path) -> None:
    with serving(bundle.path, tmp_path / "log") as running:
        command = [sys.executable, "-m", "prerank", "skew", str(run_folder), "--url", running.url]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "80 requests" in done.stdout  # 40 users, each asked in two ways
        other = load_trained(run_folder, "exposed-only")
        with pytest.raises(ArtifactError, match="not those of training"):
            check_skew(other, running.url, 3)
    with pytest.raises(ArtifactError, match="does not answer"):
        check_skew(other, running.url, 3)
