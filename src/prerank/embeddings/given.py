"""Vectors that the user brought along, for example from a multimodal model."""

from __future__ import annotations

import numpy as np

from prerank.artifacts import FloatArray
from prerank.embeddings.vectors import unit_rows
from prerank.errors import DataError
from prerank.progress import log

WHERE = "catalog.vectors"


def use_given(vectors: FloatArray | None) -> FloatArray:
    """Return the user's vectors (N, D) as unit rows; a row of NaN (missing) becomes zeros.

    Raises:
        DataError: there are none, or all are missing, or a row is infinite or NaN in part.
    """
    if vectors is None or not vectors.size:
        raise DataError(
            "the data set has no item vectors",
            where=WHERE,
            must="one vector per item",
            hint='give the vectors to `prepare`, or choose encoder = "lsa"',
        )
    bad_ND = ~np.isfinite(vectors)
    missing_N = np.asarray(np.isnan(vectors).all(axis=1))
    broken = np.flatnonzero(bad_ND.any(axis=1) & ~missing_N)
    if len(broken):
        column = int(bad_ND[broken[0]].argmax())
        raise DataError(
            f"{len(broken)} item vectors hold NaN or infinity",
            where=f"{WHERE}, row {broken[0]}, column {column}",
            must="finite numbers, or NaN in the whole row where the vector is missing",
            got=vectors[broken[0], column],
        )
    present_N = ~missing_N & np.asarray(vectors.any(axis=1))
    if not present_N.any():
        raise DataError("every item vector is missing or zero", where=WHERE)
    if not present_N.all():
        log(f"given vectors: {(~present_N).sum()} of {len(vectors)} items have none")
    return unit_rows(np.where(missing_N[:, None], np.float32(0), vectors))
