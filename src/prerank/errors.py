"""Every error prerank raises on purpose, and the one form of their messages.

A message answers five questions: what is wrong, where (file, column, row), what it must be,
what was got, and what to do about it. The exit codes are the command line's contract.
"""

from __future__ import annotations


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
        return "\n".join([self.what, *(f"  {name}: {text}" for name, text in parts if text)])


class ConfigError(PrerankError):
    """A recipe, an option or an argument is wrong (exit code 2)."""

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


class NotFittedError(PrerankError):
    """A model was used before it was fitted or loaded."""


class MissingExtraError(PrerankError):
    """An optional dependency is absent; the hint names the extra to install (exit code 2)."""

    exit_code = 2
