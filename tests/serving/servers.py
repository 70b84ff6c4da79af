"""Real servers over real sockets: `prerank serve` and redis-server as their own processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

TOKEN = "open sesame"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@dataclass(frozen=True)
class Running:
    url: str
    process: subprocess.Popen[str]
    log: Path

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=10, **options)  # type: ignore[arg-type]


@contextlib.contextmanager
def serving(bundle: Path, log: Path, *options: str, token: str = "") -> Iterator[Running]:
    port = free_port()
    command = [sys.executable, "-m", "prerank", "serve", str(bundle), "--port", str(port), *options]
    environment = {**os.environ, "PRERANK_TOKEN": token}
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, stdout=file, env=environment, text=True)
    try:
        url = f"http://127.0.0.1:{port}"
        wait(lambda: httpx.get(f"{url}/readyz").status_code == 200, process, log)
        yield Running(url, process, log)
    finally:
        process.terminate()
        process.wait(20)


def wait(ready: object, process: subprocess.Popen[str], log: Path) -> None:
    for _ in range(300):
        if process.poll() is not None:
            raise AssertionError(f"the server ended early:\n{log.read_text()}")
        with contextlib.suppress(httpx.TransportError, OSError):
            if ready():  # type: ignore[operator]
                return
        time.sleep(0.1)
    raise AssertionError(f"the server did not start:\n{log.read_text()}")


@contextlib.contextmanager
def redis_server(folder: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")
    folder.mkdir(exist_ok=True)
    command = ["redis-server", "--port", str(port), "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True)
    try:

        def ready() -> bool:
            with socket.create_connection(("127.0.0.1", port), 1) as link:
                link.sendall(b"PING\r\n")
                return link.recv(16).startswith(b"+PONG")

        wait(ready, process, folder)
        yield process
    finally:
        process.kill()
        process.wait(10)
