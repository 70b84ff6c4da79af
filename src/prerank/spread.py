"""How the shards of a stage are computed: here one after the other, or wherever an engine likes.

A stage cuts its work into tasks of arrays, says how a worker gets ready (it loads a model, once),
and takes results as they come, in any order. It does not know where they were computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
"""One task, or one result: named arrays, and nothing else that would have to travel."""
Ready = Callable[[], Callable[[Arrays], Arrays]]
"""Called once by each worker; must be made of functions of modules (`functools.partial`)."""
Spread = Callable[[Ready, Sequence[Arrays]], Iterator[tuple[int, Arrays]]]
"""(ready, tasks) -> (number of a task, its result), each once, in any order."""


def here(ready: Ready, tasks: Sequence[Arrays]) -> Iterator[tuple[int, Arrays]]:
    """Compute the tasks in this process, in their order; get ready only if there are any."""
    if not tasks:
        return
    work = ready()
    for number, task in enumerate(tasks):
        yield number, work(task)
