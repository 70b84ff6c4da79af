"""Every error prerank raises on purpose, and the one form of their messages.

A message answers five questions: what is wrong, where (file, column, row), what it must be,
what was got, and what to do about it. The exit codes are the command line's contract.
"""

from __future__ import annotations

import errno


class PrerankWarning(UserWarning):
    """Something a careful reader wants to know; the run goes on."""


class PrerankError(Exception):
    """Base of all errors raised by prerank.

    Args:
        what: what is wrong, one line.
        where: file, table, column or row.
        must: what it must be.
        got: what was found.
        hint: what the reader can do.
    """

    exit_code = 1

    def __init__(
        self, what: str, *, where: str = "", must: str = "", got: object = "", hint: str = ""
    ) -> None:
        self.what, self.where, self.must, self.got, self.hint = what, where, must, str(got), hint
        super().__init__(self._message())

    def _message(self) -> str:
        parts = (
            ("where", self.where),
            ("must be", self.must),
            ("got", self.got),
            ("hint", self.hint),
        )
        lines = [self.what, *(f"  {name}: {text}" for name, text in parts if text)]
        return "\n".join(map(_printable, lines))


def _printable(line: str) -> str:
    """Return ``line`` with control characters and line ends written out: they may be an id's."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


class ConfigError(PrerankError):
    """A recipe, an option or an argument is wrong (exit code 2)."""

    exit_code = 2


class DivergedError(PrerankError):
    """The loss of a training left the finite numbers before any epoch worth keeping (code 3)."""

    exit_code = 3

    @classmethod
    def of(cls, epoch: int, key: str, rate: float) -> DivergedError:
        """Return the error for ``epoch``, counted from 1, under ``rate``, the value of ``key``."""
        return cls(
            "training diverged",
            where=f"epoch {epoch}",
            must="a finite loss",
            got="NaN or infinity",
            hint=f"a smaller {key} (it is {rate:g})",
        )


class BusyError(PrerankError):
    """Another run holds the folder (exit code 2)."""

    exit_code = 2


class DataError(PrerankError):
    """A table, a vector or an id of the user's data is wrong (exit code 3)."""

    exit_code = 3


class ArtifactError(PrerankError):
    """A stored artifact cannot be used (exit code 3)."""

    exit_code = 3


class StaleArtifactError(ArtifactError):
    """An artifact was made from other parents or another config than the ones asked for."""


class SchemaError(ArtifactError):
    """An artifact has a schema version that this prerank cannot read."""


class MissingExtraError(PrerankError):
    """An optional dependency is absent; the hint names the extra to install (exit code 2)."""

    exit_code = 2


NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)
NO_SPACE_TEXTS = ("No space left on device", "Disk quota exceeded", "File too large")
"""What libraries that hide the error number say of a full disk."""


def is_full_disk(error: BaseException) -> bool:
    """Say whether ``error`` was raised because a disk is full."""
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return True
    return any(text in str(error) for text in NO_SPACE_TEXTS)


def full_disk(where: str, got: object) -> ArtifactError:
    """Return the error for a full disk, met while writing ``where``."""
    return ArtifactError(
        "the disk is full",
        where=where,
        got=got,
        hint="free some space and run the same command again; finished parts are kept",
    )


def from_system(error: OSError) -> PrerankError:
    """Turn a refusal of the operating system that nobody foresaw into our form of message."""
    where, got = str(error.filename or ""), error.strerror or str(error)
    if is_full_disk(error):
        return full_disk(where, got)
    if error.errno in NOT_ALLOWED:
        return ConfigError(
            "a file or folder cannot be written or read",
            where=where,
            must="a place that this user may write to and read from",
            got=got,
        )
    return PrerankError("the operating system refused", where=where, got=got)


def first_line(error: BaseException) -> str:
    """Return the first line of a foreign error's text, or its kind, for the `got` of ours."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
