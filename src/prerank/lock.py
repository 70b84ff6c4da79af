"""One run at a time in a folder: a lock that dies with its process, and says who holds it.

Beside it `alone`, for folders of work of what is no run: exports, and copies of what lies at a URI.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, parent_process
from pathlib import Path
from typing import IO

from prerank.errors import BusyError, ConfigError

WORK = ".work"
LOCK = "lock"
PARENT_S = 0.2
"""How often a process looks whether its parent is still there."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder, made if it is not there, and clear what a killed run left half-written.

    The system drops the lock when the process ends, however it ends: a leftover lock file blocks
    nobody. Readers need no lock, for an artifact appears by one rename.

    Raises:
        BusyError: another process holds the folder; says which.
        ConfigError: the folder cannot be written.
    """
    work = folder / WORK
    _refuse_link(work)
    try:
        work.mkdir(parents=True, exist_ok=True)
        # Opened without truncation: what stands there is the holder's name until we are it.
        file = (work / LOCK).open("a+")
    except OSError as error:
        raise ConfigError(
            "the run's folder cannot be written",
            where=str(folder),
            must="a folder on a disk that can be written and has room",
            got=error.strerror,
            hint="give the run another place with --set out=...",
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                "another run is working in this folder",
                where=str(folder),
                must="one run at a time",
                got=_holder(file),
                hint="wait for it, or give this run another --set name=...",
            ) from None
        except OSError as error:
            hint = "give the run another place with --set out=..."
            raise _no_locks("the run's folder cannot be locked", folder, error, hint) from None
        _sign(file)
        for leftover in [*work.glob("new-*"), *work.glob("old-*")]:
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def _refuse_link(work: Path) -> None:
    if work.is_symlink():  # leftovers in it are deleted: they must be ours
        raise ConfigError("the run's work folder is a link", where=str(work), must="a folder")


def _no_locks(what: str, folder: Path, error: OSError, hint: str = "") -> ConfigError:
    must = "on a file system with locks (flock)"
    return ConfigError(what, where=str(folder), must=must, got=error.strerror, hint=hint)


@contextmanager
def alone(folder: Path) -> Iterator[Path]:
    """Wait until nobody else holds ``folder``; hold it, and delete it at the end.

    It is made if it is not there. What a killed process left in it is the next one's to look at.
    No run that starts beside it clears it.

    Raises:
        ConfigError: its disk has no locks.
    """
    _refuse_link(folder.parent)
    file = folder.with_name(f"{folder.name}.{LOCK}")
    with _held(file):
        folder.mkdir(exist_ok=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            file.unlink(missing_ok=True)


def _held(file: Path) -> IO[str]:
    """Return ``file`` opened and locked; whoever held it before has deleted it at the end."""
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = file.open("a")
        except FileNotFoundError:  # the folder was cleared away between the two
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            handle.close()
            raise _no_locks("a folder cannot be locked", file.parent, error) from None
        if _is_still(handle, file):
            return handle
        handle.close()


def _is_still(handle: IO[str], file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), file.stat())
    except FileNotFoundError:
        return False


def _sign(file: IO[str]) -> None:
    """Write who holds the lock; a full disk is no reason to give the lock up."""
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
    try:
        file.truncate(0)
        file.write(json.dumps(holder))
        file.flush()
    except OSError:
        pass


def _holder(file: IO[str]) -> str:
    """Return who holds the lock, as they wrote it."""
    try:
        file.seek(0)
        found = json.loads(file.read())
        return f"process {found['pid']:d} on {found['host']!s}, since {found['since']!s}"
    except (OSError, ValueError, TypeError, KeyError):
        return "a process that has not written its name"


@contextmanager
def given_up_when_stopped(pool: ProcessPoolExecutor) -> Iterator[None]:
    """Do not wait for what a pool still works on when we are asked to stop: nobody will read it.

    After an error what runs is finished, and kept where it is kept; nothing more is begun.
    """
    try:
        yield
    except Exception:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        pool.shutdown(wait=False, cancel_futures=True)
        for child in active_children():
            child.terminate()
        raise


def die_with_parent() -> None:
    """End this worker process when the process that started it ends, even by kill -9.

    Otherwise workers of a killed run would go on training for nobody.
    """
    parent = parent_process()
    if parent is not None and parent.pid is not None:
        die_with(parent.pid)


def die_with(process: int) -> None:
    """End this process when its parent, ``process``, ends."""

    def wait() -> None:
        while os.getppid() == process:
            time.sleep(PARENT_S)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
