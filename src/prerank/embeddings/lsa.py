"""LSA: TF-IDF of words and word pairs, then a truncated SVD. Nothing to download."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from threadpoolctl import threadpool_limits

from prerank import seeds
from prerank.artifacts import FloatArray, TextArray
from prerank.embeddings.config import EncoderConfig
from prerank.embeddings.vectors import unit_rows
from prerank.errors import DataError
from prerank.progress import log

WORD = r"\w+"
"""Letters, digits and underscores, one of them is enough: ``tag_39`` and ``3`` are words."""
HASH_COLUMNS = 1 << 22
ZERO = 1e-6
"""A text whose words all fall outside the kept dimensions has a projection of rounding noise."""


def encode_lsa(texts: TextArray, config: EncoderConfig, seed: int) -> FloatArray:
    """Return latent semantic analysis vectors of ``texts`` (N,): (N, D) float32 unit rows.

    Deerwester et al. 1990; method.md section 2, stage 1: C. Terms are counted as 1 + log(count)
    and weighted by inverse document frequency. D is ``config.embedding_dim``, or the largest rank
    that the texts can have if that is less. A text without words, or without a word in at least
    ``config.min_df`` texts, gets a row of zeros.
    Memory: the sparse counts and N x (D + 10) numbers; words are hashed, so no dictionary grows
    with the catalog. One thread for the SVD, so that the bytes do not depend on the machine's load.

    Raises:
        DataError: no text has a word.
    """
    counts_NF = _counts(texts, config)
    if not counts_NF.shape[1]:
        raise DataError(
            "no item has a word to encode",
            where="catalog.text",
            must=f"text, with a word in at least {config.min_df} items (min_df)",
            got=f"{len(texts)} items",
            hint="name columns of text in `prepare.logs.items.text`, or give each item a `vector` "
            'and set encode.encoder = "given"',
        )
    weights_NF = TfidfTransformer(sublinear_tf=True).fit_transform(counts_NF)
    n_dims = min(config.embedding_dim, *weights_NF.shape)
    if n_dims < config.embedding_dim:
        log(f"lsa: {n_dims} dimensions instead of {config.embedding_dim}: the texts hold no more")
    if weights_NF.shape[1] == 1:
        return unit_rows(weights_NF.toarray())
    svd = TruncatedSVD(n_dims, random_state=seeds.derive(seed, "lsa") % 2**32)
    with threadpool_limits(1):
        projected_ND = svd.fit_transform(weights_NF)
    projected_ND[np.linalg.norm(projected_ND, axis=1) < ZERO] = 0
    return unit_rows(projected_ND)


def _counts(texts: TextArray, config: EncoderConfig) -> sp.csr_matrix:
    """Return n-gram counts (N, F) float32, F <= ``max_features``, of hashed n-grams."""
    hasher = HashingVectorizer(
        token_pattern=WORD,
        ngram_range=(config.min_ngram, config.max_ngram),
        n_features=HASH_COLUMNS,
        alternate_sign=False,
        norm=None,
        dtype=np.float32,
    )
    counts_NF = hasher.transform(texts)
    n_texts_F = np.bincount(counts_NF.indices, minlength=HASH_COLUMNS)
    often = np.argsort(-n_texts_F, kind="stable")[: config.max_features]
    kept = np.sort(often[n_texts_F[often] >= config.min_df])
    return counts_NF[:, kept]
