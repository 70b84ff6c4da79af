"""RQ-VAE: residual quantisation in a latent space that encoder and decoder learn around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from prerank import seeds
from prerank.artifacts import FloatArray, IntArray
from prerank.progress import track
from prerank.semantic_ids.config import TokenizeConfig
from prerank.semantic_ids.kmeans import means, workers
from prerank.semantic_ids.rqkmeans import (
    RqKMeans,
    decode,
    fit_sample,
    last_distances,
    residual_codes,
)

ROWS = 1 << 14
"""Items that pass the network at once."""


@dataclass(frozen=True, eq=False)
class RqVae:
    """Residual-quantised autoencoder, frozen once fitted (method.md section 2, stage 2: S).

    Lee et al. 2022 (arXiv 2203.01941); for semantic IDs Rajput et al. 2023 (arXiv 2305.05065).
    Once fitted it is six matrix products: NumPy alone makes and decodes semantic IDs.

    Attributes:
        latent_books: per level (K_l, C) float32, the codes in the latent space.
        network: weights of encoder and decoder, see ``encode`` and ``decode``.
        codebooks: per level (K_l, D) float32 in the space of the vectors: the mean of what the
            levels before left over for a code. Their sum is a linear stand-in for ``decode``.
    """

    latent_books: tuple[FloatArray, ...]
    network: Mapping[str, FloatArray]
    codebooks: tuple[FloatArray, ...]

    @classmethod
    def fit(cls, vectors: FloatArray, config: TokenizeConfig, seed: int) -> Self:
        """Fit on a sample of ``vectors``, (N, D) float32, N > 0, none of them zero.

        The encoder starts as a projection (the identity if ``code_dim`` is 0), the codebooks as
        RQ-KMeans of all projected vectors, which also decides how many codes a level gets.
        Same seed, same device and same number of threads, same bytes.
        """
        from prerank.semantic_ids.rqvae_train import principal_axes, train

        n_dims = vectors.shape[1]
        n_code_dims = min(config.rqvae.code_dim or n_dims, n_dims)
        points_ND = fit_sample(vectors, config, seeds.rng(seed, "rq-vae"))
        basis_DC = np.eye(n_dims, dtype=np.float32)
        if n_code_dims < n_dims:
            basis_DC = principal_axes(points_ND, n_code_dims)
        start = RqKMeans.fit(points_ND @ basis_DC, config, seed)
        network, books = train(points_ND, basis_DC, start.codebooks, config.rqvae, seed)
        found = cls(tuple(books), network, ())
        codes_NL = found.tokenize(points_ND)
        return cls(found.latent_books, network, additive_books(points_ND, codes_NL, books))

    def encode(self, vectors: FloatArray) -> FloatArray:
        """Return latents (N, C): ``x A + relu(x W + b) V``."""
        weights = self.network
        hidden_NH = np.maximum(vectors @ weights["encode_in_DH"] + weights["encode_bias_H"], 0)
        out_NC: FloatArray = vectors @ weights["encode_linear_DC"]
        out_NC += hidden_NH @ weights["encode_out_HC"]
        return out_NC

    def tokenize(self, vectors: FloatArray) -> IntArray:
        """Return the codes, (N, L) int32, of ``vectors`` (N, D) float32; new items are welcome."""
        codes_NL = np.empty((len(vectors), len(self.latent_books)), dtype=np.int32)
        for start in track(range(0, len(vectors), ROWS), "tokenize items"):
            latents_BC = self.encode(vectors[start : start + ROWS])
            with workers() as pool:
                codes_NL[start : start + ROWS] = residual_codes(pool, latents_BC, self.latent_books)
        return codes_NL

    def decode(self, codes: IntArray) -> FloatArray:
        """Return the reconstruction, (N, D) float32, of ``codes`` (N, L'), L' <= L.

        The decoder ``z A + relu(z W + b) V`` at the sum of the first L' levels' codes.
        """
        weights = self.network
        out_ND = np.empty((len(codes), weights["decode_linear_CD"].shape[1]), dtype=np.float32)
        for start in range(0, len(codes), ROWS):
            total_BC = decode(self.latent_books, codes[start : start + ROWS])
            hidden_BH = np.maximum(total_BC @ weights["decode_in_CH"] + weights["decode_bias_H"], 0)
            out_ND[start : start + ROWS] = total_BC @ weights["decode_linear_CD"]
            out_ND[start : start + ROWS] += hidden_BH @ weights["decode_out_HD"]
        return out_ND

    def last_distances(self, vectors: FloatArray, codes: IntArray) -> FloatArray:
        """Return (N, K) squared latent distances to the last level's codes, prefixes as given."""
        return last_distances(self.latent_books, self.encode(vectors), codes)


def additive_books(
    vectors: FloatArray, codes: IntArray, books: list[FloatArray]
) -> tuple[FloatArray, ...]:
    """Return per level (K_l, D): the mean rest of each code's vectors, level after level.

    A code without vectors adds nothing: a row of zeros.
    """
    rest_ND = vectors.copy()
    found = []
    for level, book in enumerate(books):
        empty_KD = np.zeros((len(book), vectors.shape[1]), dtype=np.float32)
        centroids_KD = means(rest_ND, codes[:, level], empty_KD)
        rest_ND -= centroids_KD[codes[:, level]]
        found.append(centroids_KD)
    return tuple(found)
