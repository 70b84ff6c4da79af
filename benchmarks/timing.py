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
