"""Progress on long work: a bar on a terminal's stderr, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")
PLAIN_INTERVAL_S = 15.0
_quiet = False


def silence(quiet: bool = True) -> None:
    """Turn all progress output off (or on again); used by ``--quiet`` and by tests."""
    global _quiet
    _quiet = quiet


def log(message: str) -> None:
    """Write one plain line to stderr."""
    if not _quiet:
        print(message, file=sys.stderr, flush=True)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield from ``items`` while showing how many are done, the rate and the time left."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    if _quiet:
        yield from items
    elif sys.stderr.isatty():
        yield from _bar(items, description, total)
    else:
        yield from _lines(items, description, total)


def _bar(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(items, total=total, description=description)


def _lines(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    start = last = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - last > PLAIN_INTERVAL_S:
            last = time.monotonic()
            rate = done / (last - start)
            left = f", {(total - done) / rate:.0f} s left" if total and rate > 0 else ""
            log(f"{description}: {done}/{total or '?'} ({rate:.1f}/s{left})")
        yield item
