"""Items as counts of letter triples: robust to typing errors, nothing to learn or to download."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import HashingVectorizer

from prerank.artifacts import Catalog


def encode(catalog: Catalog, options: Mapping[str, Any], seed: int) -> NDArray[np.float32]:
    """Return (I, D) float32; prerank scales the rows to length 1. Nothing is random, so no seed."""
    hasher = HashingVectorizer(
        analyzer="char_wb", ngram_range=(3, 3), n_features=int(options.get("dimensions", 64))
    )
    return hasher.transform(catalog.text).toarray().astype(np.float32)
