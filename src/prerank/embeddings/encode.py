"""The encode stage: the catalog to item embeddings, the frozen semantic space."""

from __future__ import annotations

from prerank.artifacts import Dataset, FloatArray, ItemEmbeddings, require
from prerank.embeddings.config import EncodeConfig
from prerank.progress import log


def encode(dataset: Dataset, config: EncodeConfig, seed: int) -> ItemEmbeddings:
    """Return one unit vector per item, from content alone (method.md section 2, stage 1: S).

    Reads ``dataset.catalog`` and nothing else: no user, no click, no time. Texts carry no time,
    so all items are encoded, also those first seen after the cut; no label can leak this way.
    An item without content has a row of zeros: an empty text, a missing vector, or (lsa) a text
    whose every word falls outside the kept dimensions. ``seed`` matters for ``lsa`` only.

    Raises:
        DataError: no item has content, or given vectors are unfit.
        ConfigError: the text model cannot be loaded.
        MissingExtraError: sentence-transformers is not installed.
    """
    require(len(dataset.catalog) > 0, "there is no item to encode", where="catalog")
    vectors = _vectors(dataset, config, seed)
    n_empty = int((~vectors.any(axis=1)).sum())
    log(f"{config.encoder}: {vectors.shape[0]} items, {vectors.shape[1]} dimensions")
    if n_empty:
        log(f"{config.encoder}: {n_empty} items have nothing to encode and get a row of zeros")
    return ItemEmbeddings(vectors)


def _vectors(dataset: Dataset, config: EncodeConfig, seed: int) -> FloatArray:
    """Import one encoder only: a text model takes seconds to import."""
    if config.encoder == "lsa":
        from prerank.embeddings.lsa import encode_lsa

        return encode_lsa(dataset.catalog.text, config, seed)
    if config.encoder == "given":
        from prerank.embeddings.given import use_given

        return use_given(dataset.catalog.vectors)
    from prerank.embeddings.text_model import encode_texts

    return encode_texts(dataset.catalog.text, config)
