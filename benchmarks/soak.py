"""Serve, and generate anchors, again and again: does memory stay flat?

    python benchmarks/soak.py --json > benchmarks/results/soak.json

A server answers requests of a tiny run's bundle (every ten seconds it loads the bundle anew), and
beside it a process of its own generates the same anchors again, both for ``--minutes``. Memory is
read every few seconds; the slope is a least-squares line over the second half of the readings, when
caches are full. ``--rate`` and ``--pause`` leave the machine to others meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
EVERY_S, RELOAD_S = 5.0, 10.0

GENERATE = """
import shutil, sys, tempfile, time
from pathlib import Path
from chaos.small import small_recipe
from prerank import progress
from prerank.pipeline import Run, VERBS
progress.silence()
pause = float(sys.argv[2])
run = Run(small_recipe(Path(sys.argv[1])))
step = run.steps["anchors/llm"]
while True:
    run._cache.clear()
    with tempfile.TemporaryDirectory() as out:
        VERBS["generate"](run, step, Path(out))
    shutil.rmtree(run.store.work(step.key, step.fingerprint))
    print("again", flush=True)
    time.sleep(pause)
"""


@dataclass(frozen=True)
class Watched:
    """Readings of [second, MiB], and seconds for which this process was stopped meanwhile."""

    readings: list[list[float]]
    stopped: float


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def watch(pid: int, seconds: float, poke: Callable[[], None] = lambda: None) -> Watched:
    """Read a process's memory every few seconds; call ``poke`` each time.

    Where the machine stops this process for a while, that time does not count.
    """
    readings, pause = [], min(EVERY_S, max(0.05, seconds / 20))
    awake, stopped, last = 0.0, 0.0, time.monotonic()
    while awake < seconds:
        readings.append([round(awake, 1), round(resident_mb(pid), 1)])
        poke()
        time.sleep(pause)
        gap, last = time.monotonic() - last, time.monotonic()
        awake += min(gap, 2 * pause)
        stopped += max(0.0, gap - 2 * pause)
    return Watched(readings, stopped)


def summary(watched: Watched, count: int) -> dict[str, Any]:
    readings = watched.readings
    late = np.array(readings[len(readings) // 2 :])
    slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) if len(late) > 1 else 0.0
    return {
        "count": count,
        "first_mb": readings[0][1],
        "last_mb": readings[-1][1],
        "highest_mb": max(mb for _, mb in readings),
        "slope_mb_per_hour": round(slope * 3600, 2),
        "seconds": readings[-1][0],
        "stopped_seconds": round(watched.stopped, 1),
        "readings": readings,
    }


CLIENTS = 2


def serving(seconds: float, folder: Path, rate: float) -> dict[str, Any]:
    """Ask a server ``rate`` times a second, or, where it is 0, as fast as two clients can."""
    from serving.small_run import make_bundle, make_run, make_world

    bundle = make_bundle(make_run(folder / "run", make_world()), folder / "bundle", "gpl")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "prerank", "-q", "serve", str(bundle.path)]
    server = subprocess.Popen([*command, "--port", str(port)], stderr=subprocess.DEVNULL)
    url, answered, failed, stop = f"http://127.0.0.1:{port}", [0], [0], threading.Event()
    items = [str(1000 + n) for n in range(60)]

    def ask(number: int) -> None:
        while not stop.is_set():
            body = json.dumps({"user": str(100 + number % 50), "candidates": items}).encode()
            number += 1
            request = urllib.request.Request(
                f"{url}/v1/rank", body, {"content-type": "application/json"}
            )
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    answer.read()
                answered[0] += 1
            except (urllib.error.URLError, OSError):
                failed[0] += not stop.is_set()
                time.sleep(0.05)
            if rate:
                stop.wait(CLIENTS / rate)

    last = [time.monotonic()]

    def reload() -> None:
        if time.monotonic() - last[0] > RELOAD_S:
            last[0] = time.monotonic()
            server.send_signal(signal.SIGHUP)

    try:
        _ready(f"{url}/readyz", server)
        clients = [threading.Thread(target=ask, args=(n,), daemon=True) for n in range(CLIENTS)]
        for client in clients:
            client.start()
        watched = watch(server.pid, seconds, reload)
        stop.set()
        return {"failed": failed[0], **summary(watched, answered[0])}
    finally:
        stop.set()
        server.terminate()
        server.wait(30)


def _ready(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        if server.poll() is not None:
            raise SystemExit("the server ended early")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise SystemExit("the server did not start")


def generating(seconds: float, folder: Path, pause: float) -> dict[str, Any]:
    """Generate the same anchors again and again in one process."""
    from chaos.small import small_recipe
    from prerank.pipeline import run_recipe

    run_recipe(small_recipe(folder), ("prepare", "encode", "tokenize", "finetune"))
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    worker = subprocess.Popen(
        [sys.executable, "-c", GENERATE, str(folder), str(pause)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert worker.stdout is not None
    output, times = worker.stdout, [0]

    def count() -> None:
        for _ in output:
            times[0] += 1

    try:
        if output.readline() != "again\n":
            raise SystemExit("the generation ended early")
        threading.Thread(target=count, daemon=True).start()
        return summary(watch(worker.pid, seconds), times[0])
    finally:
        worker.kill()
        worker.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--json", action="store_true", help="the only form there is")
    parser.add_argument("--quick", action="store_true", help="20 seconds")
    parser.add_argument("--rate", type=float, default=0, help="requests a second; 0: all it can")
    parser.add_argument("--pause", type=float, default=0, help="seconds between two generations")
    parser.add_argument("--shared", action="store_true", help="note that others used the machine")
    options = parser.parse_args()
    seconds = 10.0 if options.quick else options.minutes * 60
    from prerank import progress

    progress.silence()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as both:
        served = both.submit(serving, seconds, Path(name, "serving"), options.rate)
        generated = both.submit(generating, seconds, Path(name, "generating"), options.pause)
        found = {
            "command": " ".join(["python", *sys.argv]),
            "minutes": round(seconds / 60, 2),
            "machine": "shared with other work" if options.shared else "its own",
            "serving": served.result(),
            "generation": generated.result(),
        }
    print(re.sub(r"\[\s+([\d.]+),\s+([\d.]+)\s+\]", r"[\1, \2]", json.dumps(found, indent=1)))


if __name__ == "__main__":
    main()
