"""A process that has imported everything and forks one `prerank` a line of its input.

Importing torch takes seconds, a small run takes less: so each run is a fork, and a kill -9 of it is
a real one. Nothing may be computed here before a fork: thread pools do not survive it.

A line is a JSON object: ``argv``; ``kill_at``: the name of the moment at which the child kills
itself; ``signal``: by which signal (9); ``kill_after``: seconds after which it is killed from
outside; ``moments``: a file to write the names of all moments to; ``clock``: "back" lets the
system's clock go backwards; ``exchange``: false for a disk that cannot exchange two names. The
answer is one line: the status, negative for a signal.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def import_all() -> None:
    import transformers.models.qwen2.modeling_qwen2  # noqa: F401

    import prerank.anchors.finetune
    import prerank.anchors.generate
    import prerank.cli
    import prerank.data.prepare
    import prerank.embeddings.encode
    import prerank.embeddings.lsa
    import prerank.evaluation.evaluate
    import prerank.evaluation.report_html
    import prerank.labels.label
    import prerank.pipeline
    import prerank.ranking.train
    import prerank.semantic_ids.tokenize  # noqa: F401


class Moments:
    """Names every step a run takes on disk, and dies at the one that is wanted."""

    def __init__(self, wanted: str | None, number: int, log: str | None) -> None:
        self.wanted, self.number = wanted, number
        self.log = log
        self.key = "run"
        self.seen: dict[str, int] = {}

    def pass_(self, what: str) -> None:
        name = f"{what} [{self.key}]"
        self.seen[name] = self.seen.get(name, 0) + 1
        if self.seen[name] > 1:
            name += f" #{self.seen[name]}"
        if self.log:
            with Path(self.log).open("a") as file:
                print(name, file=file)
        if self.wanted == name:
            os.kill(os.getpid(), self.number)

    def watch(self, can_exchange: bool) -> None:
        """Put a moment before and after each stage, file that appears, and half a text."""
        from prerank import pipeline, store

        def staged(verb: Callable[..., None]) -> Callable[..., None]:
            def run(runs: Any, step: Any, out: Path) -> None:
                self.key = step.key
                self.pass_("begin")
                verb(runs, step, out)
                self.pass_("made")

            return run

        pipeline.VERBS = {name: staged(verb) for name, verb in pipeline.VERBS.items()}
        replace, write_text, swap = Path.replace, Path.write_text, store.swap

        def watched_replace(path: Path, target: Path) -> Path:
            old = target.name.startswith("old-")
            what = target.name if target.suffix else f"folder {'old' if old else 'new'}"
            self.pass_(f"before {what}")
            done = replace(path, target)
            self.pass_(f"after {what}")
            return done

        def watched_write(path: Path, text: str, *more: Any, **options: Any) -> int:
            if path.name == store.MANIFEST or path.suffix == ".part":
                write_text(path, text[: len(text) // 2], *more, **options)
                self.pass_(f"half of {path.name.split('.')[0]}")
            return write_text(path, text, *more, **options)

        def watched_swap(temporary: Path, final: Path) -> None:
            self.pass_("whole")
            swap(temporary, final)
            self.pass_("published")

        exchange = store._exchange

        def watched_exchange(one: Path, other: Path) -> bool:
            self.pass_("before exchange")
            done = can_exchange and exchange(one, other)
            self.pass_("after exchange")
            return done

        store._exchange = watched_exchange
        Path.replace = watched_replace  # type: ignore[method-assign,assignment]
        Path.write_text = watched_write  # type: ignore[method-assign,assignment]
        store.swap = watched_swap


def set_back() -> None:
    """Let the clock lose an hour at every look."""
    now = [time.time()]

    def earlier() -> float:
        now[0] -= 3600
        return now[0]

    gmtime = time.gmtime
    time.time = earlier
    time.time_ns = lambda: int(earlier() * 1e9)
    time.gmtime = lambda seconds=None: gmtime(earlier() if seconds is None else seconds)


def child(ask: dict[str, Any]) -> None:
    import torch

    from prerank import cli

    torch.set_num_threads(1)
    with Path(ask["log"]).open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    moments = Moments(ask.get("kill_at"), ask.get("signal", signal.SIGKILL), ask.get("moments"))
    moments.watch(ask.get("exchange", True))
    if ask.get("clock") == "back":
        set_back()
    sys.argv = ["prerank", *ask["argv"]]
    cli.main()


def serve(ask: dict[str, Any]) -> int:
    pid = os.fork()
    if not pid:
        code = 1
        try:
            child(ask)
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + ask.get("kill_after", 300)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


if __name__ == "__main__":
    import_all()
    answers = os.fdopen(os.dup(1), "w")
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(serve(json.loads(line)), file=answers, flush=True)
