"""An encoder of another package: `encode(catalog, options, seed)` -> (I, D)."""

from __future__ import annotations

import numpy as np

from prerank import plugins
from prerank.artifacts import Catalog, FloatArray
from prerank.embeddings.config import EncoderConfig
from prerank.embeddings.vectors import unit_rows
from prerank.errors import DataError


def encode_by_plugin(catalog: Catalog, config: EncoderConfig, seed: int) -> FloatArray:
    """Return what the plug-in made of the catalog, as unit rows (I, D) float32.

    Raises:
        ConfigError: the plug-in is not there.
        DataError: it returned no (I, D) array of finite numbers.
    """
    encode = plugins.find(config.plugin, "encode.plugin")
    vectors = np.asarray(encode(catalog, config.options, seed))
    number = vectors.dtype.kind in "fiu"
    fits = vectors.ndim == 2 and len(vectors) == len(catalog) and vectors.shape[1] > 0
    if not (number and fits and np.isfinite(vectors).all()):
        raise DataError(
            "the encoder returned no vectors",
            where=config.plugin,
            must=f"({len(catalog)}, D) finite numbers, a row of zeros where an item has no content",
            got=f"{vectors.shape} {vectors.dtype}",
        )
    return unit_rows(vectors)
