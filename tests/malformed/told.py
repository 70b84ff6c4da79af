"""What every complaint owes its reader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prerank.errors import PrerankError


@contextmanager
def told(where: str, *, about: str = "", folder: Path | None = None) -> Iterator[None]:
    """Expect a complaint that says what, where (holds ``where``), must be or got, with code 2 or 3.

    ``about`` stands somewhere in it. Nothing may have been written to ``folder`` by then.
    """
    before = listing(folder)
    with pytest.raises(PrerankError) as caught:
        yield
    error = caught.value
    assert error.exit_code in (2, 3)
    assert error.what and "\n" not in error.what and "Traceback" not in str(error)
    assert where in error.where, f"where: {error.where!r}"
    assert about in str(error)
    assert error.must or error.hint, f"neither must be nor hint: {error}"
    assert error.must or error.got, f"neither must be nor got: {error}"
    assert len(str(error)) < 2000
    assert listing(folder) == before


def listing(folder: Path | None) -> list[tuple[str, int]]:
    if folder is None:
        return []
    return sorted((str(p), p.stat().st_size) for p in folder.rglob("*") if p.is_file())
