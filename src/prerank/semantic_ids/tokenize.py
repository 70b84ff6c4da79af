"""The tokenize stage: item embeddings to semantic IDs."""

from __future__ import annotations

import numpy as np

from prerank.artifacts import ItemEmbeddings, SemanticIds, require
from prerank.progress import log
from prerank.semantic_ids.config import TokenizeConfig
from prerank.semantic_ids.quality import quality
from prerank.semantic_ids.rqkmeans import RqKMeans
from prerank.semantic_ids.tokenizer import Tokenizer


def tokenize(embeddings: ItemEmbeddings, config: TokenizeConfig, seed: int) -> SemanticIds:
    """Return the semantic IDs of all items, from content alone (method.md section 2, stage 2: S).

    Codebooks are fitted on items that have content. An item without any (a row of zeros) gets the
    codes nearest to zero: legal, meaningless, and the same for all such items. A level gets
    ``config.codebook_size`` codes, or as many as it has distinct vectors; a single item or equal
    vectors give one code a level. ``quality`` of the result tells (see ``quality.quality``), with
    the key ``codebook_size_asked`` besides. Same seed and config, same bytes, whatever the number
    of threads.

    Raises:
        DataError: no item has content.
    """
    vectors_ID = embeddings.vectors
    content_I = vectors_ID.any(axis=1)
    require(
        content_I.any(),
        "no item has content to make semantic IDs from",
        where="item embeddings",
        must="at least one row that is not zero",
        got=f"{len(vectors_ID)} rows, all zero",
    )
    kind: type[Tokenizer] = RqKMeans
    tokenizer = kind.fit(vectors_ID if content_I.all() else vectors_ID[content_I], config, seed)
    codes_IL = tokenizer.tokenize(vectors_ID)
    about = quality(vectors_ID, codes_IL, tokenizer.codebooks)
    about["codebook_size_asked"] = config.codebook_size
    log(
        f"semantic IDs: {about['n_items']} items, {about['unique_sids']} distinct IDs, codebooks "
        f"{about['codebook_sizes']}, left over {np.round(about['residual_norm'], 3).tolist()}"
    )
    return SemanticIds(
        codes=codes_IL,
        codebook_sizes=np.array(about["codebook_sizes"], dtype=np.int32),
        codebooks=np.concatenate(tokenizer.codebooks),
        quality=about,
    )


def restore(ids: SemanticIds) -> RqKMeans:
    """Return the tokenizer that made ``ids``: it decodes, and gives semantic IDs to new items."""
    return RqKMeans(tuple(ids.level(level) for level in range(ids.n_levels)))
