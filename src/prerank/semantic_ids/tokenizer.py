"""The seam between the tokenize stage and the ways to make semantic IDs."""

from __future__ import annotations

from typing import Protocol, Self

from prerank.artifacts import FloatArray, IntArray
from prerank.semantic_ids.config import TokenizeConfig


class Tokenizer(Protocol):
    """A fitted way to turn vectors into codes and back; it never changes once fitted."""

    @property
    def codebooks(self) -> tuple[FloatArray, ...]:
        """Per level (K_l, D) float32; the rows that ``decode`` adds up."""

    @classmethod
    def fit(cls, vectors: FloatArray, config: TokenizeConfig, seed: int) -> Self:
        """Fit on ``vectors``, (N, D) float32 unit rows, N > 0; same seed, same codebooks."""

    def tokenize(self, vectors: FloatArray) -> IntArray:
        """Return the codes, (N, L) int32, of ``vectors`` (N, D) float32, seen before or not."""

    def decode(self, codes: IntArray) -> FloatArray:
        """Return the reconstruction, (N, D) float32, of ``codes`` (N, L'), L' <= L."""
