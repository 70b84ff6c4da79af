"""How good a set of semantic IDs is: use of the codes, shared IDs, what each level explains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from prerank.artifacts import FloatArray, IntArray
from prerank.semantic_ids.tokenizer import Tokenizer

ROWS = 1 << 16


def quality(vectors: FloatArray, codes: IntArray, tokenizer: Tokenizer) -> dict[str, Any]:
    """Describe the semantic IDs of items, plain JSON values (method.md section 2, stage 2).

    Args:
        vectors: (I, D) float32, unit rows; rows of zeros are left out of all but the first count.
        codes: (I, L) int32.
        tokenizer: gives the sizes of the codebooks, and decodes.

    Returns:
        ``n_items``, ``n_without_content``: items, and those among them with a vector of zeros;
        ``n_levels``, ``codebook_sizes``: L and the K_l;
        ``codes_used``: per level, codes that some item has;
        ``perplexity``: per level, exp of the entropy of code use: K_l when all are used equally;
        ``unique_prefixes``: per level, distinct codes up to and including it (nodes of the trie);
        ``unique_sids``: distinct semantic IDs (the last of these);
        ``shared_share``: share of items whose semantic ID another item has too;
        ``largest_bucket``: items of the most crowded semantic ID;
        ``gini``: inequality of bucket sizes over the semantic IDs in use, 0 all equal, below 1;
        ``bucket_cosine``: mean cosine of an item to the others of its bucket, over the items of
        shared semantic IDs; None if nothing is shared;
        ``residual_norm``: per level, mean length of what is left over after it, 1 before the
        first; ``residual_energy``: the same of the squared length.
    """
    content = np.flatnonzero(vectors.any(axis=1))
    sizes = [len(centroids_KD) for centroids_KD in tokenizer.codebooks]
    bucket_N, prefixes = buckets(codes[content], sizes)
    count_S = np.bincount(bucket_N)
    norms, energies = residuals(vectors, codes, tokenizer, content)
    uses = [np.bincount(codes[content, level], minlength=k) for level, k in enumerate(sizes)]
    return {
        "n_items": len(vectors),
        "n_without_content": len(vectors) - len(content),
        "n_levels": len(sizes),
        "codebook_sizes": sizes,
        "codes_used": [int((use > 0).sum()) for use in uses],
        "perplexity": [_perplexity(use) for use in uses],
        "unique_prefixes": prefixes,
        "unique_sids": len(count_S),
        "shared_share": float(count_S[count_S > 1].sum() / len(content)),
        "largest_bucket": int(count_S.max()),
        "gini": _gini(count_S),
        "bucket_cosine": _bucket_cosine(vectors, content, bucket_N, count_S),
        "residual_norm": norms,
        "residual_energy": energies,
    }


def buckets(codes_NL: IntArray, sizes: Sequence[int]) -> tuple[NDArray[np.int64], list[int]]:
    """Number the distinct semantic IDs; return each item's number and the prefixes per level.

    One level at a time, so that the product of the codebook sizes never has to fit in an integer.
    """
    bucket_N = np.zeros(len(codes_NL), dtype=np.int64)
    prefixes = []
    for size, codes_N in zip(sizes, codes_NL.T, strict=True):
        found, bucket_N = np.unique(bucket_N * size + codes_N, return_inverse=True)
        prefixes.append(len(found))
    return bucket_N, prefixes


def residuals(
    vectors: FloatArray, codes: IntArray, tokenizer: Tokenizer, rows: NDArray[np.int64]
) -> tuple[list[float], list[float]]:
    """Return per level the mean length, and mean squared length, of what is left over.

    Over ``rows`` of the items; what is left over is vector minus reconstruction from the codes up
    to and including the level. NaN where there are no rows.
    """
    n_levels = codes.shape[1]
    if not len(rows):
        return [float("nan")] * n_levels, [float("nan")] * n_levels
    totals_L2 = np.zeros((n_levels, 2))
    for start in range(0, len(rows), ROWS):
        block = rows[start : start + ROWS]
        for level in range(n_levels):
            rest_BD = vectors[block] - tokenizer.decode(codes[block, : level + 1])
            energy_B = np.einsum("bd,bd->b", rest_BD, rest_BD).astype(np.float64)
            totals_L2[level] += np.sqrt(energy_B).sum(), energy_B.sum()
    norms, energies = (totals_L2 / len(rows)).T.tolist()
    return norms, energies


def _perplexity(use_K: NDArray[np.int64]) -> float:
    share = use_K[use_K > 0] / use_K.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def _gini(count_S: NDArray[np.int64]) -> float:
    """Gini coefficient of positive counts: sum_i (2 i - n - 1) x_i / (n sum x), x ascending."""
    ordered = np.sort(count_S)
    n = len(ordered)
    return float(((2 * np.arange(1, n + 1) - n - 1) * ordered).sum() / (n * ordered.sum()))


def _bucket_cosine(
    vectors: FloatArray,
    content: NDArray[np.int64],
    bucket_N: NDArray[np.int64],
    count_S: NDArray[np.int64],
) -> float | None:
    """Return the mean over items in shared buckets of their mean cosine to the bucket's others.

    Unit rows: the cosines of all ordered pairs of a bucket sum to |sum of its rows|^2 - n.
    """
    shared = np.flatnonzero(count_S[bucket_N] > 1)
    if not len(shared):
        return None
    order = shared[np.argsort(bucket_N[shared], kind="stable")]
    number_N, rows_N = bucket_N[order], content[order]
    n_buckets = int((count_S > 1).sum())
    first = np.flatnonzero(np.diff(number_N, prepend=-1))
    size_S = np.diff(first, append=len(order))
    local_N = np.repeat(np.arange(n_buckets), size_S)
    sums_SD = np.zeros((n_buckets, vectors.shape[1]), dtype=np.float32)
    for start in range(0, len(order), ROWS):
        local_B = local_N[start : start + ROWS]
        low, high = int(local_B[0]), int(local_B[-1]) + 1
        member_SB = sp.csc_matrix(
            (np.ones(len(local_B), dtype=np.float32), local_B - low, np.arange(len(local_B) + 1)),
            shape=(high - low, len(local_B)),
        )
        sums_SD[low:high] += member_SB @ vectors[rows_N[start : start + ROWS]]
    pairs_S = np.einsum("sd,sd->s", sums_SD, sums_SD).astype(np.float64) - size_S
    return float((pairs_S / (size_S - 1)).sum() / len(order))
