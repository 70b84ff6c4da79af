"""Rows of unit length, the only form in which vectors leave the encode stage."""

from __future__ import annotations

import numpy as np

from prerank.artifacts import FloatArray

ROWS = 1 << 16


def unit_rows(vectors: FloatArray) -> FloatArray:
    """Return a copy of ``vectors`` (N, D), finite, with rows of length 1; zero rows stay zero.

    A row is first divided by its largest entry, so that neither huge nor tiny entries are lost
    when squared.
    """
    out_ND = np.empty(vectors.shape, dtype=np.float32)
    for start in range(0, len(vectors), ROWS):
        rows_BD = vectors[start : start + ROWS].astype(np.float64)
        top_B1 = np.abs(rows_BD).max(axis=1, keepdims=True)
        rows_BD /= np.where(top_B1 > 0, top_B1, 1)
        norm_B1 = np.linalg.norm(rows_BD, axis=1, keepdims=True)
        out_ND[start : start + ROWS] = rows_BD / np.where(norm_B1 > 0, norm_B1, 1)
    return out_ND
