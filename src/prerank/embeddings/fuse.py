"""Fusion: the vectors of several modalities become one space; a modality may be missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import FloatArray
from prerank.embeddings.vectors import unit_rows
from prerank.errors import ConfigError
from prerank.progress import log

ROWS = 1 << 14
SMALLEST_SHARE = 1e-6
"""A direction with less than this share of the largest variance is rounding noise."""

Block = Callable[[int, int], NDArray[np.float64]]


class _Moments(NamedTuple):
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


def concat_pca(parts: Sequence[FloatArray], weights: Sequence[float], n_dims: int) -> FloatArray:
    """Return (N, D) unit rows: weighted concatenation of ``parts`` (N, D_p), then PCA (C).

    Each part is scaled by the root of its share of the weights, so that before PCA the cosine of
    two items is the weighted mean of their cosines by modality. A missing modality (a row of zeros)
    counts as its mean: it draws the item nowhere. An item that lacks all of them stays zeros.
    """
    shares = np.sqrt(np.array(weights) / np.sum(weights))
    means = [_mean(part) for part in parts]

    def block(start: int, stop: int) -> NDArray[np.float64]:
        rows = [part[start:stop].astype(np.float64) for part in parts]
        filled = [
            np.where(r.any(axis=1, keepdims=True), r, mean) * s
            for r, mean, s in zip(rows, means, shares, strict=True)
        ]
        return np.concatenate(filled, axis=1)

    n_items = len(parts[0])
    present_N = np.any([part.any(axis=1) for part in parts], axis=0)
    mean_D, covariance_DD = _moments(block, present_N)
    values, axes = np.linalg.eigh(covariance_DD)
    rank = int((values > SMALLEST_SHARE * values[-1]).sum()) if values[-1] > 0 else 0
    kept = min(n_dims, rank)
    if kept == 0:
        # All items alike: centring would leave nothing.
        mean_D, axes, kept = np.zeros_like(mean_D), np.eye(len(mean_D)), len(mean_D)
    elif kept < n_dims:
        log(f"fusion: {kept} dimensions instead of {n_dims}: the parts hold no more")
    axes_DK = axes[:, ::-1][:, :kept]
    out_NK = np.zeros((n_items, kept), dtype=np.float32)
    for start, stop in _ranges(n_items):
        here = present_N[start:stop]
        projected_BK = ((block(start, stop) - mean_D) @ axes_DK)[here]
        out_NK[start:stop][here] = unit_rows(projected_BK.astype(np.float32))
    return out_NK


def whitened_mean(parts: Sequence[FloatArray], weights: Sequence[float]) -> FloatArray:
    """Return (N, D) unit rows: weighted mean of the modalities present, each whitened (C).

    Whitening keeps the axes (ZCA), so that a space shared by the encoders, such as CLIP's of text
    and image, stays shared; where it is not, products across modalities are noise.

    Raises:
        ConfigError: the parts have different dimensions.
    """
    dims = [part.shape[1] for part in parts]
    if len(set(dims)) > 1:
        raise ConfigError(
            "whitened-mean needs modalities of one shared space",
            where="encode.fusion.method",
            must="parts of equal dimensions",
            got=dims,
            hint='method = "concat-pca" takes any',
        )
    total_ND = np.zeros(parts[0].shape, dtype=np.float32)
    for part, weight in zip(parts, weights, strict=True):
        whiten = _whitener(part)
        for start, stop in _ranges(len(part)):
            here = part[start:stop].any(axis=1)
            white_BD = unit_rows(whiten(part[start:stop][here]).astype(np.float32))
            total_ND[start:stop][here] += np.float32(weight) * white_BD
    for start, stop in _ranges(len(total_ND)):
        total_ND[start:stop] = unit_rows(total_ND[start:stop])
    return total_ND


def _whitener(part: FloatArray) -> Callable[[FloatArray], NDArray[np.float64]]:
    def block(start: int, stop: int) -> NDArray[np.float64]:
        return part[start:stop].astype(np.float64)

    moments = _moments(block, np.asarray(part.any(axis=1)))
    values, axes = np.linalg.eigh(moments.covariance)
    if values[-1] <= 0:  # all alike
        return lambda rows: rows.astype(np.float64)
    floor = SMALLEST_SHARE * values[-1]
    scale = np.where(values > floor, 1 / np.sqrt(np.maximum(values, floor)), 0)
    return lambda rows: ((rows - moments.mean) @ axes * scale) @ axes.T


def _mean(part: FloatArray) -> NDArray[np.float64]:
    """Return the mean (D,) of the rows that are not zero."""
    total_D, n_rows = np.zeros(part.shape[1]), 0
    for start, stop in _ranges(len(part)):
        total_D += part[start:stop].sum(axis=0, dtype=np.float64)
        n_rows += int(part[start:stop].any(axis=1).sum())
    return total_D / max(n_rows, 1)


def _moments(block: Block, present_N: NDArray[np.bool_]) -> _Moments:
    """Return mean (D,) and covariance (D, D) of the present rows, in blocks."""
    n_dims = block(0, 1).shape[1]
    total_D, second_DD = np.zeros(n_dims), np.zeros((n_dims, n_dims))
    for start, stop in _ranges(len(present_N)):
        total_D += block(start, stop)[present_N[start:stop]].sum(axis=0)
    n_rows = max(int(present_N.sum()), 1)
    mean_D = total_D / n_rows
    for start, stop in _ranges(len(present_N)):
        centred = block(start, stop)[present_N[start:stop]] - mean_D
        second_DD += centred.T @ centred
    return _Moments(mean_D, second_DD / n_rows)


def _ranges(n_rows: int) -> Iterator[tuple[int, int]]:
    for start in range(0, n_rows, ROWS):
        yield start, min(start + ROWS, n_rows)
