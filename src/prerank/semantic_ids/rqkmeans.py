"""RQ-KMeans: one k-means a level, each on what the levels before left over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Self

import numpy as np

from prerank import seeds
from prerank.artifacts import FloatArray, IntArray
from prerank.progress import track
from prerank.semantic_ids.config import TokenizeConfig
from prerank.semantic_ids.kmeans import kmeans, nearest, workers

ROWS = 1 << 16
"""Items whose residuals are held at once."""
NOTHING_LEFT = 1e-5
"""A residual shorter than this (unit vectors) is rounding noise; noise is no level's business."""


@dataclass(frozen=True, eq=False)
class RqKMeans:
    """Residual-quantised k-means, frozen once fitted (method.md section 2, stage 2: C).

    The residual of level 0 is the vector; the code of a level is the nearest centroid of its
    residual; the next residual is what that centroid leaves over.

    Attributes:
        codebooks: per level (K_l, D) float32, the centroids.
    """

    codebooks: tuple[FloatArray, ...]

    @classmethod
    def fit(cls, vectors: FloatArray, config: TokenizeConfig, seed: int) -> Self:
        """Fit the codebooks on a sample of ``vectors``, (N, D) float32, N > 0, none of them zero.

        A level gets ``config.codebook_size`` codes, or as many as its residuals have distinct
        values: one code where nothing is left over. Every code has at least one item.
        """
        rng = seeds.rng(seed, "rq-kmeans")
        residual_ND = fit_sample(vectors, config, rng)
        codebooks = []
        with workers() as pool:
            for _ in track(range(config.n_levels), "fit codebooks"):
                centroids_KD, codes_N = kmeans(
                    pool,
                    residual_ND,
                    config.codebook_size,
                    iterations=config.iterations,
                    tolerance=config.tolerance,
                    rng=rng,
                )
                codebooks.append(centroids_KD)
                residual_ND -= centroids_KD[codes_N]
                left_N = np.einsum("nd,nd->n", residual_ND, residual_ND)
                residual_ND[left_N < NOTHING_LEFT**2] = 0
        return cls(tuple(codebooks))

    @property
    def network(self) -> Mapping[str, FloatArray]:
        """Nothing: the codebooks are all there is."""
        return {}

    def tokenize(self, vectors: FloatArray) -> IntArray:
        """Return the codes, (N, L) int32, of ``vectors`` (N, D) float32; new items are welcome."""
        codes_NL = np.empty((len(vectors), len(self.codebooks)), dtype=np.int32)
        with workers() as pool:
            for start in track(range(0, len(vectors), ROWS), "tokenize items"):
                rows = slice(start, start + ROWS)
                codes_NL[rows] = residual_codes(pool, vectors[rows].copy(), self.codebooks)
        return codes_NL

    def decode(self, codes: IntArray) -> FloatArray:
        """Return the reconstruction, (N, D) float32, of ``codes`` (N, L'), L' <= L.

        It is the sum of the centroids of the first L' levels; its norm is not 1.
        """
        return decode(self.codebooks, codes)

    def last_distances(self, vectors: FloatArray, codes: IntArray) -> FloatArray:
        """Return (N, K) squared distances to the last level's centroids, prefixes as given."""
        return last_distances(self.codebooks, vectors, codes)


def fit_sample(vectors: FloatArray, config: TokenizeConfig, rng: np.random.Generator) -> FloatArray:
    """Return a copy of the rows to fit on: all, or ``sample_per_code`` per code, drawn evenly."""
    n_sample = min(len(vectors), config.sample_per_code * config.codebook_size)
    return vectors[np.sort(rng.choice(len(vectors), n_sample, replace=False))]


def residual_codes(
    pool: Executor, residual_BD: FloatArray, codebooks: Sequence[FloatArray]
) -> IntArray:
    """Return the nearest codes, (B, L) int32, level by level; ``residual_BD`` is used up."""
    codes_BL = np.empty((len(residual_BD), len(codebooks)), dtype=np.int32)
    for level, centroids_KD in enumerate(codebooks):
        codes_BL[:, level], _ = nearest(pool, residual_BD, centroids_KD)
        residual_BD -= centroids_KD[codes_BL[:, level]]
    return codes_BL


def last_distances(
    codebooks: Sequence[FloatArray], points: FloatArray, codes: IntArray
) -> FloatArray:
    """Return (N, K) squared distances of what all levels but the last leave over to its codes."""
    last_KD = codebooks[-1]
    rest_ND = points - decode([*codebooks[:-1], np.zeros_like(last_KD)], codes)
    distance_NK: FloatArray = (rest_ND @ last_KD.T).astype(np.float32, copy=False)
    distance_NK *= -2
    distance_NK += np.einsum("kd,kd->k", last_KD, last_KD)
    distance_NK += np.einsum("nd,nd->n", rest_ND, rest_ND)[:, None]
    return distance_NK


def decode(codebooks: Sequence[FloatArray], codes: IntArray) -> FloatArray:
    """Return the sum of the codes' centroids, (N, D) float32, of ``codes`` (N, L'), L' <= L."""
    total_ND = np.zeros((len(codes), codebooks[0].shape[1]), dtype=np.float32)
    for centroids_KD, codes_N in zip(codebooks, codes.T, strict=False):
        total_ND += centroids_KD[codes_N]
    return total_ND
