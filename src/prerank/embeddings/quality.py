"""How good a semantic space looks: neighbours one can read, anisotropy, effective dimension."""

from __future__ import annotations

from typing import Any

import numpy as np

from prerank import seeds
from prerank.artifacts import FloatArray, TextArray

SAMPLE_ITEMS = 8
NEIGHBOURS = 5
PAIRS = 50_000
SAMPLE_ROWS = 20_000
ROWS = 1 << 16
TITLE = 80


def quality(vectors: FloatArray, titles: TextArray, seed: int) -> dict[str, Any]:
    """Describe unit rows ``vectors`` (I, D) with ``titles`` (I,); plain JSON values.

    Returns:
        ``n_items``, ``n_without_content``, ``embedding_dim``: counts;
        ``anisotropy``: mean cosine of random pairs of distinct items: near 0 in a space that is
        used all over, near 1 where all vectors point one way and cosines tell little
        (Ethayarajh 2019, doi 10.18653/v1/D19-1006);
        ``anisotropy_spread``: standard deviation of these cosines;
        ``effective_dimension``: (sum of eigenvalues)^2 / sum of their squares of the covariance of
        a sample: how many directions carry the space;
        ``neighbour_cosine``: mean cosine of the sample items to their nearest other item;
        ``neighbours``: sample items with their nearest others by title and cosine.
        All but the counts None with fewer than two items with content.
    """
    rng = seeds.rng(seed, "encode", "quality")
    content = np.flatnonzero(vectors.any(axis=1))
    about: dict[str, Any] = {
        "n_items": len(vectors),
        "n_without_content": len(vectors) - len(content),
        "embedding_dim": vectors.shape[1],
        "anisotropy": None,
        "anisotropy_spread": None,
        "effective_dimension": None,
        "neighbour_cosine": None,
        "neighbours": [],
    }
    if len(content) < 2:
        return about
    left = rng.integers(len(content), size=PAIRS)
    right = (left + rng.integers(1, len(content), size=PAIRS)) % len(content)
    cosine = np.einsum("nd,nd->n", vectors[content[left]], vectors[content[right]])
    about["anisotropy"], about["anisotropy_spread"] = float(cosine.mean()), float(cosine.std())
    rows = rng.choice(content, min(len(content), SAMPLE_ROWS), replace=False)
    about["effective_dimension"] = effective_dimension(vectors[np.sort(rows)])
    sample = np.sort(rng.choice(content, min(len(content), SAMPLE_ITEMS), replace=False))
    nearest, near_cosine = _nearest(vectors, sample)
    about["neighbour_cosine"] = float(near_cosine[:, 0].mean())
    about["neighbours"] = [
        {
            "item": str(titles[item])[:TITLE],
            "nearest": [
                [str(titles[n])[:TITLE], round(float(c), 3)]
                for n, c in zip(near, cosines, strict=True)
            ],
        }
        for item, near, cosines in zip(sample, nearest, near_cosine, strict=True)
    ]
    return about


def effective_dimension(points: FloatArray) -> float:
    """Return the participation ratio of the covariance of ``points`` (N, D); 0 if all are equal."""
    centred = points.astype(np.float64) - points.mean(axis=0, dtype=np.float64)
    covariance_DD = centred.T @ centred
    squares = float((covariance_DD**2).sum())  # the sum of the squared eigenvalues
    return float(np.trace(covariance_DD) ** 2 / squares) if squares > 0 else 0.0


def _nearest(vectors: FloatArray, sample: np.ndarray[Any, Any]) -> tuple[Any, FloatArray]:
    """Return the (S, k) nearest other items of each sample item, and their cosines."""
    n_near = min(NEIGHBOURS, len(vectors) - 1)
    best = np.zeros((len(sample), 0), dtype=np.int64)
    score = np.zeros((len(sample), 0), dtype=np.float32)
    for start in range(0, len(vectors), ROWS):
        cosine_SB = vectors[sample] @ vectors[start : start + ROWS].T
        item_B = np.arange(start, start + cosine_SB.shape[1])
        cosine_SB[sample[:, None] == item_B] = -np.inf
        score = np.concatenate([score, cosine_SB], axis=1)
        best = np.concatenate([best, np.broadcast_to(item_B, cosine_SB.shape)], axis=1)
        order = np.argsort(-score, axis=1, kind="stable")[:, :n_near]
        score = np.take_along_axis(score, order, axis=1)
        best = np.take_along_axis(best, order, axis=1)
    return best, score
