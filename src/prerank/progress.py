"""Progress on long work: one live line on a terminal's stderr, a plain line now and then elsewhere.

Loops that report nest (a stage's steps, a step's epochs, an epoch's batches), so one line can say
how much of the whole is done: 2 of 10 steps, the third at a quarter, makes .225. The time left is
that of the outermost loop with more than one turn.
"""

from __future__ import annotations

import multiprocessing
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

T = TypeVar("T")
PLAIN_INTERVAL_S = 15.0
LIVE_INTERVAL_S = 0.1
BLANKS = "\n\t\N{NO-BREAK SPACE}\N{IDEOGRAPHIC SPACE}"
_quiet = False


def silence(quiet: bool = True) -> None:
    """Turn all progress output off (or on again); used by ``--quiet`` and by tests."""
    global _quiet
    _quiet = quiet


def plain(text: str) -> str:
    """Return ``text`` with control characters written out, line ends, tabs and blanks left.

    Ids and titles come from anybody: they must not move a terminal's cursor or colour it.
    """
    return "".join(c if c.isprintable() or c in BLANKS else ascii(c)[1:-1] for c in text)


def one_line(value: object) -> str:
    """Return the text of ``value`` with line ends and tabs written out, too."""
    return plain(str(value)).replace("\n", "\\n").replace("\t", "\\t")


def shown(value: object, style: str = "") -> Text:
    """Return a cell of a table that shows ``value`` as it is: no markup, no control characters."""
    return Text(plain(str(value)), style=style)


def log(message: str) -> None:
    """Write one plain line to stderr, above the live line where there is one.

    Control characters are written out; further lines of a message are indented, so that no text
    of a user's data can pass for a line of the log.
    """
    if _quiet:
        return
    said = re.sub(r"\n(?! )", "\n  ", plain(message))
    if _screen.live is not None:
        _screen.live.console.print(said, markup=False, highlight=False, soft_wrap=True)
    else:
        print(said, file=sys.stderr, flush=True)


def log_step(message: str) -> None:
    """Write a line that the live line makes needless: nothing on a terminal."""
    if _screen.live is None:
        log(message)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield from ``items`` while showing how many are done, the rate and the time left.

    Worker processes and threads show nothing: the first process reports for all of them.
    """
    return _track(items, description, total, is_stage=False)


def stage(items: Iterable[T], name: str, total: int) -> Iterator[T]:
    """Yield the steps of one stage as `track` does; a terminal keeps its line when it ends."""
    return _track(items, name, total, is_stage=True)


def _track(items: Iterable[T], description: str, total: int | None, is_stage: bool) -> Iterator[T]:
    if total is None and isinstance(items, Sized):
        total = len(items)
    in_front = (
        threading.current_thread() is threading.main_thread()
        and multiprocessing.parent_process() is None
    )
    if _quiet or not in_front:
        yield from items
        return
    loop = _Loop(description, total, is_stage)
    _screen.begin(loop)
    whole = False
    try:
        for item in items:
            yield item
            loop.done += 1
            _screen.show()
        whole = True
    finally:
        _screen.end(loop, whole)


@dataclass(eq=False)
class _Loop:
    """A loop under way."""

    description: str
    total: int | None
    is_stage: bool
    done: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def rate(self) -> float:
        """Turns a second, 0 before the first."""
        seconds = time.monotonic() - self.started
        return self.done / seconds if seconds > 0 else 0.0

    @property
    def count(self) -> str:
        """``3/10``, or ``3`` where the end is unknown."""
        return f"{self.done}/{self.total}" if self.total is not None else f"{self.done}"


class _Screen:
    """The loops under way, outermost first, and where they are shown."""

    def __init__(self) -> None:
        self.loops: list[_Loop] = []
        self.live: Progress | None = None
        self._task = TaskID(0)
        self._shown = 0.0

    def begin(self, loop: _Loop) -> None:
        if not self.loops:
            self._shown = time.monotonic()
            if sys.stderr.isatty():
                self._start(loop)
        self.loops.append(loop)
        self.show()

    def _start(self, loop: _Loop) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("{task.fields[text]}"),
        )
        # stdout is data: it goes past the live line, never through it to stderr.
        console = Console(file=sys.stderr)
        self.live = Progress(*columns, console=console, transient=True, redirect_stdout=False)
        self._task = self.live.add_task(f"{loop.description:9s}", total=None, text="")
        self.live.start()

    def end(self, loop: _Loop, whole: bool) -> None:
        """Forget a loop and what was left under way inside it."""
        with suppress(ValueError):
            del self.loops[self.loops.index(loop) :]
        if self.loops or self.live is None:
            return
        live, self.live = self.live, None
        live.stop()
        if loop.is_stage and whole:
            several = f", {loop.done} artifacts" if loop.done != 1 else ""
            seconds = time.monotonic() - loop.started
            live.console.print(
                f"{loop.description:9s} {seconds:8.1f} s{several}", markup=False, highlight=False
            )

    def show(self) -> None:
        """Bring the line up to date, or write a plain one, if it is time."""
        interval = PLAIN_INTERVAL_S if self.live is None else LIVE_INTERVAL_S
        now = time.monotonic()
        if now - self._shown < interval:
            return
        self._shown = now
        text, share = self._line()
        if self.live is None:
            log(text)
        else:
            head = self.loops[0].description
            said = text.removeprefix(head).lstrip(": ")
            self.live.update(self._task, text=said, completed=share, total=1 if share else None)

    def _line(self) -> tuple[str, float]:
        """Return what is said of the loops under way, and the share done of what is timed."""
        first = next((k for k, one in enumerate(self.loops) if one.total != 1), len(self.loops))
        timed = self.loops[first:]
        named = [one.description for one in self.loops[:first]]
        if not timed:
            return ": ".join(named), 0.0
        counts = ", ".join(f"{one.description} {one.count}" for one in timed)
        text, share, inner = ": ".join([*named, counts]), _share(timed), timed[-1]
        if inner.rate:
            text += f", {inner.rate:.3g}/s"
        if share:
            spent = time.monotonic() - timed[0].started
            text += f", {timedelta(seconds=round(spent * (1 / share - 1)))} left"
        return text, share


def _share(loops: list[_Loop]) -> float:
    """Return the share done of the first loop, its turn under way counted in part; 0 if unknown."""
    share = 0.0
    for loop in reversed(loops):
        if not loop.total:
            return 0.0
        share = min(1.0, (loop.done + share) / loop.total)
    return share


_screen = _Screen()
