"""The seam between the tokenize stage and the ways to make semantic IDs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, Self

from prerank.artifacts import FloatArray, IntArray
from prerank.semantic_ids.config import TokenizeConfig


class Tokenizer(Protocol):
    """A fitted way to turn vectors into codes and back; it never changes once fitted."""

    @property
    def codebooks(self) -> tuple[FloatArray, ...]:
        """Per level (K_l, D) float32 in the space of the vectors; their sum stands for an ID."""

    @property
    def network(self) -> Mapping[str, FloatArray]:
        """What ``tokenize`` and ``decode`` need besides the codebooks; empty if nothing."""

    @classmethod
    def fit(cls, vectors: FloatArray, config: TokenizeConfig, seed: int) -> Self:
        """Fit on ``vectors``, (N, D) float32 unit rows, N > 0; same seed, same codebooks."""

    def tokenize(self, vectors: FloatArray) -> IntArray:
        """Return the codes, (N, L) int32, of ``vectors`` (N, D) float32, seen before or not."""

    def decode(self, codes: IntArray) -> FloatArray:
        """Return the reconstruction, (N, D) float32, of ``codes`` (N, L'), L' <= L."""

    def last_distances(self, vectors: FloatArray, codes: IntArray) -> FloatArray:
        """Return (N, K) squared distances to the last level's codes, all other codes as given."""
