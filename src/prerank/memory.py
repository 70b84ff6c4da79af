"""How much memory this process has held at most, since a moment of our choosing."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


def reset_peak() -> None:
    """Start the measure anew, where the system can (Linux); elsewhere it goes on."""
    with suppress(OSError):
        CLEAR.write_text("5")


def peak_bytes() -> int:
    """Return the largest resident size since `reset_peak`; without Linux, since the start."""
    try:
        lines = STATUS.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
