"""The encode stage: the catalog to item embeddings, the frozen semantic space."""

from __future__ import annotations

from pathlib import Path

from prerank.artifacts import Dataset, FloatArray, ItemEmbeddings, require
from prerank.embeddings.config import EncodeConfig, EncoderConfig, PartConfig
from prerank.embeddings.quality import quality
from prerank.progress import log
from prerank.spread import Spread, here


def encode(
    dataset: Dataset,
    config: EncodeConfig,
    seed: int,
    work: Path | None = None,
    spread: Spread = here,
) -> ItemEmbeddings:
    """Return one unit vector per item, from content alone (method.md section 2, stage 1: S).

    Reads ``dataset.catalog`` and nothing else: no user, no click, no time. Texts carry no time,
    so all items are encoded, also those first seen after the cut; no label can leak this way.
    An item without content has a row of zeros: an empty text, a missing vector or image, or (lsa)
    a text whose every word falls outside the kept dimensions. ``seed`` matters for ``lsa`` and
    the report's samples only. ``quality`` of the result is `prerank.embeddings.quality`'s report.

    Args:
        work: a folder that survives a kill, for this data set, config and seed only: encoders with
            a model leave finished shards there and go on from them. None: all in memory.
        spread: where shards of encoders with a model are computed.

    Raises:
        DataError: no item has content, given vectors are unfit, or too many images unreadable.
        ConfigError: a model cannot be loaded, or parts of a fusion do not fit together.
        MissingExtraError: the package of an encoder is not installed.
        ArtifactError: the disk is full; finished shards are kept.
    """
    require(len(dataset.catalog) > 0, "there is no item to encode", where="catalog")
    if config.encoder == "fusion":
        vectors = _fused(dataset, config, seed, work, spread)
    else:
        vectors = _vectors(dataset, config.encoder, config, seed, work, config.encoder, spread)
    about = quality(vectors, dataset.catalog.title, seed)
    log(f"{config.encoder}: {vectors.shape[0]} items, {vectors.shape[1]} dimensions")
    if about["n_without_content"]:
        log(
            f"{config.encoder}: {about['n_without_content']} items have nothing to encode and get "
            "a row of zeros"
        )
    return ItemEmbeddings(vectors, quality=about)


def _vectors(
    dataset: Dataset,
    encoder: str,
    config: EncoderConfig,
    seed: int,
    work: Path | None,
    title: str,
    spread: Spread,
) -> FloatArray:
    """Import one encoder only: a text model takes seconds to import."""
    catalog = dataset.catalog
    if encoder == "lsa":
        from prerank.embeddings.lsa import encode_lsa

        return encode_lsa(catalog.text, config, seed)
    if encoder == "given":
        from prerank.embeddings.given import use_given

        return use_given(catalog.vectors)
    if encoder == "plugin":
        from prerank.embeddings.plugin import encode_by_plugin

        return encode_by_plugin(catalog, config, seed)
    if encoder == "image":
        from prerank.embeddings.image_model import encode_images

        return encode_images(catalog.image, config, work=work, title=title, spread=spread)
    from prerank.embeddings.text_model import encode_texts

    plain = encoder == "text-model"
    return encode_texts(catalog.text, config, plain=plain, work=work, title=title, spread=spread)


def _fused(
    dataset: Dataset, config: EncodeConfig, seed: int, work: Path | None, spread: Spread
) -> FloatArray:
    from prerank.embeddings.fuse import concat_pca, whitened_mean

    def part_vectors(number: int, part: PartConfig) -> FloatArray:
        title = f"{number}-{part.encoder}"
        return _vectors(dataset, part.encoder, part, seed, work, title, spread)

    parts = [part_vectors(number, part) for number, part in enumerate(config.fusion.parts)]
    weights = [part.weight for part in config.fusion.parts]
    if config.fusion.method == "whitened-mean":
        return whitened_mean(parts, weights)
    return concat_pca(parts, weights, config.fusion.embedding_dim)
