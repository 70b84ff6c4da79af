"""RQ-KMeans: one k-means a level, each on what the levels before left over."""

from __future__ import annotations

from collections.abc import Sequence
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
        n_sample = min(len(vectors), config.sample_per_code * config.codebook_size)
        residual_ND = vectors[np.sort(rng.choice(len(vectors), n_sample, replace=False))]
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

    def tokenize(self, vectors: FloatArray) -> IntArray:
        """Return the codes, (N, L) int32, of ``vectors`` (N, D) float32; new items are welcome."""
        codes_NL = np.empty((len(vectors), len(self.codebooks)), dtype=np.int32)
        with workers() as pool:
            for start in track(range(0, len(vectors), ROWS), "tokenize items"):
                residual_BD = vectors[start : start + ROWS].copy()
                for level, centroids_KD in enumerate(self.codebooks):
                    codes_B, _ = nearest(pool, residual_BD, centroids_KD)
                    codes_NL[start : start + ROWS, level] = codes_B
                    residual_BD -= centroids_KD[codes_B]
        return codes_NL

    def decode(self, codes: IntArray) -> FloatArray:
        """Return the reconstruction, (N, D) float32, of ``codes`` (N, L'), L' <= L.

        It is the sum of the centroids of the first L' levels; its norm is not 1.
        """
        return decode(self.codebooks, codes)


def decode(codebooks: Sequence[FloatArray], codes: IntArray) -> FloatArray:
    """Return the sum of the codes' centroids, (N, D) float32, of ``codes`` (N, L'), L' <= L."""
    total_ND = np.zeros((len(codes), codebooks[0].shape[1]), dtype=np.float32)
    for centroids_KD, codes_N in zip(codebooks, codes.T, strict=False):
        total_ND += centroids_KD[codes_N]
    return total_ND
