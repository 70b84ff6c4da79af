"""What a tracker is, and the one that sends every figure to all of them.

A tracker never fails a run: the first time that one raises, it is dropped with one warning, and
the others go on.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from prerank.errors import PrerankWarning

FOLDER = "tracking"
LINES_FILE = "metrics.jsonl"
Measures = tuple[int, dict[str, float]]
"""A step (an epoch, or 0) and its figures."""
End = Literal["finished", "failed", "killed"]
"""How a run ended: whole, by an error, or by a signal."""


class Tracker(Protocol):
    """Takes figures. Any method may raise; see the module's docstring."""

    @property
    def goes_on(self) -> bool:
        """Whether it adds to what an earlier start has sent, and needs none of that again."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take figures of one moment: flat name -> value; ``step`` counts epochs, or is 0."""

    def close(self, end: End = "finished") -> None:
        """Send what is still held back, and say how the run ended."""


@dataclass(frozen=True)
class About:
    """What a tracker is told of the run when it is opened.

    Attributes:
        name: of the run.
        folder: for the tracker's files, inside the run's folder; it is there.
        settings: every key of the recipe, flat (``train.epochs``), as text.
    """

    name: str
    folder: Path
    settings: Mapping[str, str]


class JsonLines:
    """One line a figure: ``{"time": ..., "step": ..., "metric": ..., "value": ...}``.

    Time is in seconds since 1970, a value that is not finite is null. Lines are appended whole, by
    one write, so a kill spoils at most the last one.
    """

    goes_on = True

    def __init__(self, file: Path) -> None:
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        self._mend()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one line a figure."""
        now = round(time.time(), 3)
        lines = [
            json.dumps({"time": now, "step": step, "metric": name, "value": _finite(value)})
            for name, value in metrics.items()
        ]
        self._append("".join(f"{line}\n" for line in lines).encode())

    def close(self, end: End = "finished") -> None:
        """Nothing is held back."""

    def _mend(self) -> None:
        """End a line that a kill has cut off, so that the next one stands alone."""
        if self._file.exists() and self._file.stat().st_size:
            with self._file.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                whole = file.read(1) == b"\n"
            if not whole:
                self._append(b"\n")

    def _append(self, data: bytes) -> None:
        with self._file.open("ab", buffering=0) as file:
            file.write(data)


@dataclass(frozen=True)
class Forward:
    """Hands figures to another process, which has the trackers."""

    send: Callable[[Measures], None]
    goes_on = False  # the first process knows what was sent

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send figures and their step."""
        self.send((step, dict(metrics)))

    def close(self, end: End = "finished") -> None:
        """Nothing is held back."""


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def sent_before(file: Path) -> dict[tuple[str, int], float | None]:
    """Return (figure, step) -> its last value in the lines that `JsonLines` wrote; empty if none.

    Lines that a kill has cut off are passed over.
    """
    found: dict[tuple[str, int], float | None] = {}
    with suppress(OSError):
        for line in file.read_text().splitlines():
            with suppress(ValueError, KeyError, TypeError):
                one = json.loads(line)
                found[one["metric"], one["step"]] = one["value"]
    return found


_ABSENT = object()


@dataclass
class Tracking:
    """Sends figures to every tracker; opens each when the first figure comes.

    Attributes:
        openers: name -> what opens the tracker.
        before: (figure, step) -> its last value, of what was sent before this start; a tracker
            that goes on from there is not sent it again.
    """

    openers: dict[str, Callable[[], Tracker]]
    before: Mapping[tuple[str, int], float | None] = field(default_factory=dict)
    _open: dict[str, Tracker] = field(default_factory=dict)
    _sent: dict[str, set[tuple[str, int]]] = field(default_factory=dict)

    def log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Send figures to every tracker that has not failed, each figure of a step once.

        An epoch's figures come while it trains, and again from the finished artifact, which is all
        there is where another machine trained it, and holds the epochs of an earlier start. A
        tracker that goes on from that start has the ones that are as they were.
        """
        if not metrics:
            return
        for tracker in list(self.openers):
            with self._guarded(tracker):
                if tracker not in self._open:
                    self._open[tracker] = self.openers[tracker]()
                before = self.before if self._open[tracker].goes_on else {}
                sent = self._sent.setdefault(tracker, set())
                new = {
                    name: value
                    for name, value in metrics.items()
                    if (name, step) not in sent
                    and before.get((name, step), _ABSENT) != _finite(value)
                }
                if new:
                    self._open[tracker].log(new, step)
                sent |= {(name, step) for name in new}

    def close(self, end: End = "finished") -> None:
        """Close every tracker."""
        for name in list(self._open):
            with self._guarded(name):
                self._open[name].close(end)
        self._open.clear()

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._drop(name, error)

    def _drop(self, name: str, error: Exception) -> None:
        """Give a tracker up, and say so once."""
        self.openers.pop(name, None)
        failed = self._open.pop(name, None)
        said = str(error).strip().splitlines()
        warnings.warn(
            f"tracking: {name} failed and gets no more figures of this run "
            f"({type(error).__name__}: {said[0] if said else 'no message'})",
            PrerankWarning,
            stacklevel=2,
        )
        if failed is not None:
            with suppress(Exception):
                failed.close()
