"""How the benchmarks take time."""

from __future__ import annotations

import time
from collections.abc import Callable


def best_seconds(
    work: Callable[[], object],
    repeats: int,
    *,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the least seconds of ``repeats`` calls, after ``warm_up`` calls that do not count.

    The least, because other processes can only add to it. ``time.process_time`` as the clock
    counts processor seconds, which hold on a busy machine too.
    """
    for _ in range(warm_up):
        work()
    times = []
    for _ in range(repeats):
        start = clock()
        work()
        times.append(clock() - start)
    return min(times)


def best_seconds_in_turn(
    works: list[Callable[[], object]], repeats: int, device: str, *, warm_up: int = 1
) -> list[float]:
    """Return the least wall-clock seconds of each of ``works``; they take turns.

    ``warm_up`` rounds do not count. What runs on a CUDA device is waited for.
    """
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats + warm_up):
        for work, found in zip(works, times, strict=True):
            _wait(device)
            started = time.perf_counter()
            work()
            _wait(device)
            found.append(time.perf_counter() - started)
    return [min(found[warm_up:]) for found in times]


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()
