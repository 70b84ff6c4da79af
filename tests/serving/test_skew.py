"""The replay finds no skew where there is none, and skew where there is."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from prerank.errors import ArtifactError, ConfigError
from prerank.serving.bundle import Bundle
from prerank.serving.export import load_trained
from prerank.serving.skew import TRIES, check_skew, latest_requests
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


def test_the_latest_requests_are_those_of_the_latest_moments(run_folder: Path) -> None:
    """Codes of requests follow names: here the first code is the latest moment."""
    trained = load_trained(run_folder, "gpl")
    log = trained.dataset.exposures
    backwards = replace(log, time=(1000 - log.request) * 1000 + np.arange(len(log)) % 7)
    timed = replace(trained, dataset=replace(trained.dataset, exposures=backwards))
    assert sorted(latest_requests(timed, 3).tolist()) == [0, 1, 2]
    assert len(latest_requests(timed, 99)) == 40

    for unit in ("none", "order"):  # nothing says which is the latest
        untimed = replace(timed, dataset=replace(timed.dataset, time_unit=unit))
        some = latest_requests(untimed, 20)
        assert len(np.unique(some)) == 20 and some.min() < 10 < 30 < some.max()
        np.testing.assert_array_equal(some, latest_requests(untimed, 20))


@pytest.mark.parametrize(
    "url", ["localhost", "localhost:8080", "http://", "http://x:abc", "ftp://x"]
)
def test_an_address_that_is_none_is_told(run_folder: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="--url"):
        check_skew(load_trained(run_folder, "gpl"), url, 1)


@contextmanager
def answering(*answers: tuple[int, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Yield the address of a server of these answers, the last one for ever, and what it got."""
    got: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            status, body = answers[min(len(got), len(answers) - 1)]
            got.append(self.headers["authorization"])
            self.send_response(status)
            self.send_header("retry-after", "0")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", got
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("body", [b"{}", b"[]", b"\xff", b'{"items": 3, "logits": 3}', b"hello"])
def test_another_server_is_told(run_folder: Path, body: bytes) -> None:
    told = pytest.raises(ArtifactError, match="cannot be read")
    with answering((200, body)) as (url, got), told:
        check_skew(load_trained(run_folder, "gpl"), url, 1, "secret\n")
    assert got == ["Bearer secret"]


def test_a_full_server_is_asked_again_a_few_times(run_folder: Path) -> None:
    trained = load_trained(run_folder, "gpl")
    told = pytest.raises(ArtifactError, match="cannot be read")
    with answering((503, b"full"), (503, b"full"), (200, b"{}")) as (url, got), told:
        check_skew(trained, url, 1)
    assert len(got) == 3
    told = pytest.raises(ArtifactError, match="503 full")
    with answering((503, b"full")) as (url, got), told:
        check_skew(trained, url, 1)
    assert len(got) == TRIES
