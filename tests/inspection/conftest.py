"""The small run, made once, and the inspector over it: in process, and as the command runs it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from inspection.small_run import make_run
from prerank.inspection.app import create_app
from prerank.inspection.opened import OpenedRun


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("inspected"))


@pytest.fixture(scope="session")
def run(run_folder: Path) -> OpenedRun:
    return OpenedRun(run_folder)


@pytest.fixture(scope="session")
def client(run: OpenedRun) -> TestClient:
    return TestClient(create_app([run]), base_url="http://localhost")


@pytest.fixture(scope="session")
def url(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run `prerank inspect` over the run, as its own process."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "inspect.log"
    command = [sys.executable, "-m", "prerank", "inspect", str(run_folder), "--port", str(port)]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{address}/index.json").status_code == 200:
                    break
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(20)
