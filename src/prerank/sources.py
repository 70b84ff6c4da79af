"""Which files a run reads, and what is in them: what makes a stage notice a changed log or model.

Files are known by a hash of the whole of them: a Parquet file may change in its middle alone,
footer and size as they were. Reading logs again for each command would be slow, so a run's folder
remembers the hash of each file for as long as its size and its moment of change stay.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from prerank import remote
from prerank import store as stores
from prerank.errors import ArtifactError, ConfigError
from prerank.lock import WORK

MEMORY = "sources.json"
SETTLED_NS = 2_000_000_000
"""A file changed less than this ago may change again at the same moment, as its clock counts."""


def source_files(path: str, folder: Path, made: Collection[Path]) -> list[list[Any]]:
    """Return [name, bytes, hash] of each file at ``path``, sorted; names are relative to it.

    Args:
        path: file, folder or URI of the logs; empty: there are none.
        folder: of the run, which remembers hashes once it is there.
        made: folders that runs write; files in them are no logs.

    Raises:
        ConfigError: there is nothing at ``path``.
    """
    if not path:
        return []
    if remote.is_uri(path):
        return remote.source_files(path)
    root = Path(path)
    if not root.exists():
        raise ConfigError(
            "the data is not there",
            where="prepare.path",
            must="an existing file or folder",
            got=str(root),
            hint="set it with --set prepare.path=/your/logs",
        )
    files = sorted(_files_below(root)) if root.is_dir() else [root]
    # Where a run writes around the logs, all of them lie in its folder: they are logs all the same.
    around = root.resolve()
    ours = [one for one in map(Path.resolve, (folder, *made)) if not around.is_relative_to(one)]
    logs = [p for p in files if not any(p.resolve().is_relative_to(one) for one in ours)]
    memory = folder / WORK / MEMORY
    marks = _remembered(logs, memory)
    return [[str(p.relative_to(root)), p.stat().st_size, marks[p]] for p in logs]


def _files_below(root: Path) -> Iterator[Path]:
    """Yield all files below ``root``, also in folders that are links, under each of their names."""
    for at, inside, names in os.walk(root, followlinks=True):
        folder, real = Path(at), os.path.realpath(at)
        above = [one for one in folder.parents if one == root or root in one.parents]
        if any(os.path.realpath(one) == real for one in above):  # a link that leads back
            inside.clear()
            continue
        yield from (path for name in names if (path := folder / name).is_file())


def hash_file(path: Path) -> str:
    """Return a hash of all of a file."""
    about = path.stat()
    return _hash(path.resolve(), about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=4096)
def _hash(path: Path, _size: int, _changed_ns: int) -> str:
    return stores.hash_file(path)[:16]


def _remembered(files: list[Path], memory: Path) -> dict[Path, str]:
    """Return the hash of each file; those that ``memory`` knows unchanged are not read."""
    known = {n: e for n, e in stores.read_record(memory, 3).items() if isinstance(e[2], str)}
    now, found, learned = time.time_ns(), {}, dict(known)
    for file in files:
        about, name = file.stat(), str(file.resolve())
        state = [about.st_size, about.st_mtime_ns]
        entry = known.get(name, [])
        found[file] = entry[2] if entry[:2] == state else hash_file(file)
        learned.pop(name, None)
        if now - about.st_mtime_ns > SETTLED_NS:
            learned[name] = [*state, found[file]]
    if learned != known and memory.parent.is_dir():
        with suppress(OSError, ArtifactError):  # a memory that cannot be kept costs time alone
            stores.write_whole(memory, json.dumps(learned))
    return found
