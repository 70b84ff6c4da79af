"""The tokenize stage: item embeddings to semantic IDs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import FloatArray, IntArray, ItemEmbeddings, SemanticIds, require
from prerank.errors import ArtifactError
from prerank.progress import log
from prerank.semantic_ids import gate
from prerank.semantic_ids.capacity import relocate
from prerank.semantic_ids.config import TokenizeConfig
from prerank.semantic_ids.item_ids import item_ids
from prerank.semantic_ids.quality import quality, residuals
from prerank.semantic_ids.rqkmeans import ROWS, RqKMeans
from prerank.semantic_ids.rqvae import RqVae
from prerank.semantic_ids.tokenizer import Tokenizer
from prerank.spread import Arrays, Spread, here
from prerank.vocabulary import Vocabulary

LATENT = "latent_books"


def tokenize(
    embeddings: ItemEmbeddings,
    config: TokenizeConfig,
    seed: int,
    *,
    items: Vocabulary | None = None,
    published: SemanticIds | None = None,
    spread: Spread = here,
) -> SemanticIds:
    """Return the semantic IDs of all items, from content alone (method.md section 2, stage 2: S).

    Codebooks are fitted on items that have content. An item without any (a row of zeros) gets the
    codes nearest to zero: legal, meaningless, and the same for all such items. A level gets
    ``config.codebook_size`` codes, or as many as it has distinct vectors; a single item or equal
    vectors give one code a level. ``quality`` of the result tells (see ``quality.quality``), with
    the keys ``trainer``, ``codebook_size_asked`` and, where they apply, ``capacity`` and
    ``appended`` besides. RQ-KMeans: same seed and config, same bytes, whatever the number of
    threads.

    Args:
        items: the ids of the items; needed to append to these semantic IDs one day.
        published: semantic IDs to append to: their codebooks are taken as they are, no item of
            theirs gets another ID, and the trainer's settings do not matter.
        spread: where items get their codes, once the codebooks are fitted.

    Raises:
        DataError: no item has content; the quality gate is not passed; or the embeddings are not
            of the space in which ``published`` was made.
        ArtifactError: ``published`` has no item ids.
    """
    vectors_ID = embeddings.vectors
    content_I = np.asarray(vectors_ID.any(axis=1))
    require(
        content_I.any(),
        "no item has content to make semantic IDs from",
        where="item embeddings",
        must="at least one row that is not zero",
        got=f"{len(vectors_ID)} rows, all zero",
    )
    about: dict[str, Any] = {}
    if published is not None:
        tokenizer = restore(published)
        codes_IL = _append(embeddings, config, tokenizer, items, published, about, spread)
        about["trainer"] = published.quality.get("trainer", "")
    elif config.trainer == "item-id":
        tokenizer, codes_IL = item_ids(vectors_ID)
        about["trainer"] = config.trainer
    else:
        kind: type[Tokenizer] = RqVae if config.trainer == "rq-vae" else RqKMeans
        tokenizer = kind.fit(vectors_ID if content_I.all() else vectors_ID[content_I], config, seed)
        codes_IL = assign(tokenizer, vectors_ID, spread)
        _keep_to_capacity(embeddings, config, tokenizer, codes_IL, content_I, about)
        about["trainer"] = config.trainer
    about["codebook_size_asked"] = config.codebook_size
    about = quality(vectors_ID, codes_IL, tokenizer) | about
    log(
        f"semantic IDs: {about['n_items']} items, {about['unique_sids']} distinct IDs, codebooks "
        f"{about['codebook_sizes']}, left over {np.round(about['residual_norm'], 3).tolist()}"
    )
    gate.check(about, config.gate)
    network = dict(tokenizer.network)
    if isinstance(tokenizer, RqVae):
        network[LATENT] = np.concatenate(tokenizer.latent_books)
    return SemanticIds(
        codes=codes_IL,
        codebook_sizes=np.array(about["codebook_sizes"], dtype=np.int32),
        codebooks=np.concatenate(tokenizer.codebooks),
        quality=about,
        network=network,
        items=items,
    )


def assign(tokenizer: Tokenizer, vectors: FloatArray, spread: Spread) -> IntArray:
    """Return the codes (N, L) int32 of ``vectors`` (N, D), a block of rows a task."""
    tasks = [{"vectors": vectors[at : at + ROWS]} for at in range(0, len(vectors), ROWS)]
    codes_NL = np.empty((len(vectors), len(tokenizer.codebooks)), dtype=np.int32)
    for number, found in spread(partial(_ready, tokenizer), tasks):
        codes_NL[number * ROWS : (number + 1) * ROWS] = found["codes"]
    return codes_NL


def _ready(tokenizer: Tokenizer) -> Callable[[Arrays], Arrays]:
    return lambda task: {"codes": tokenizer.tokenize(task["vectors"])}


def restore(ids: SemanticIds) -> Tokenizer:
    """Return the tokenizer that made ``ids``: it decodes, and gives semantic IDs to new items."""
    books = tuple(ids.level(level) for level in range(ids.n_levels))
    if not ids.network:
        return RqKMeans(books)
    network = dict(ids.network)
    latent = np.split(network.pop(LATENT), np.cumsum(ids.codebook_sizes)[:-1])
    return RqVae(tuple(latent), network, books)


def _keep_to_capacity(
    embeddings: ItemEmbeddings,
    config: TokenizeConfig,
    tokenizer: Tokenizer,
    codes_IL: IntArray,
    may_move_I: NDArray[np.bool_],
    about: dict[str, Any],
    published: IntArray | None = None,
) -> None:
    """Move items out of crowded semantic IDs, in place; ``about`` tells how many."""
    if not config.capacity or not may_move_I.any():
        return
    rows = np.flatnonzero(may_move_I)
    codes_IL[rows], done = relocate(
        tokenizer, embeddings.vectors[rows], codes_IL[rows], config.capacity, published
    )
    about["capacity"] = {"limit": config.capacity, **done}


def _append(
    embeddings: ItemEmbeddings,
    config: TokenizeConfig,
    tokenizer: Tokenizer,
    items: Vocabulary | None,
    published: SemanticIds,
    about: dict[str, Any],
    spread: Spread,
) -> IntArray:
    """Return the published codes of known items and fresh codes of new ones."""
    if published.items is None or items is None:
        raise ArtifactError(
            "the semantic IDs to append to do not say whose they are",
            where="tokenize.append_to",
            hint="make them again with this version",
        )
    vectors_ID = embeddings.vectors
    n_dims = published.codebooks.shape[1]
    require(
        vectors_ID.shape[1] == n_dims,
        "the item embeddings have other dimensions than the published semantic IDs",
        where="tokenize.append_to",
        must=f"{n_dims} dimensions",
        got=vectors_ID.shape[1],
    )
    row_I = published.items.lookup(items.ids)
    known_I = row_I >= 0
    require(
        known_I.any(),
        "no item of the catalogue is among those that the semantic IDs were published for",
        where="tokenize.append_to",
        must="a run of the same shop, with items written alike",
        got=f"{len(row_I)} items, none of them known",
    )
    codes_IL = published.codes[row_I]
    fresh = np.flatnonzero(~known_I)
    if len(fresh):
        codes_IL[fresh] = assign(tokenizer, vectors_ID[fresh], spread)
    content_I = np.asarray(vectors_ID.any(axis=1))
    movable_I = ~known_I & content_I
    held_PL = codes_IL[known_I & content_I]
    _keep_to_capacity(embeddings, config, tokenizer, codes_IL, movable_I, about, held_PL)
    left = {
        name: residuals(vectors_ID, codes_IL, tokenizer, np.flatnonzero(mask_I))[0][-1]
        for name, mask_I in (("known", known_I & content_I), ("new", movable_I))
    }
    _same_space(left["known"], published, config.max_space_change)
    about["appended"] = {
        "n_known": int(known_I.sum()),
        "n_new": len(fresh),
        "n_removed": len(published.items) - int(known_I.sum()),
        "residual_norm_known": None if np.isnan(left["known"]) else left["known"],
        "residual_norm_new": None if np.isnan(left["new"]) else left["new"],
    }
    return codes_IL


def _same_space(left: float, published: SemanticIds, most: float) -> None:
    """Raise DataError if known items are now much farther from their semantic IDs than before."""
    before = published.quality.get("residual_norm")
    if not before or np.isnan(left):
        return
    require(
        left <= before[-1] * most + 1e-3,
        "the item embeddings are not of the space in which the semantic IDs were made: known items "
        "are far from their own IDs",
        where="tokenize.append_to",
        must=f"known items left over by at most {before[-1] * most:.3f} (max_space_change)",
        got=f"{left:.3f}; encode with the same frozen model (lsa is fitted anew on each catalogue)",
    )
