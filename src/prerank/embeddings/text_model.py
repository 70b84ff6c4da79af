"""Text vectors from a sentence-transformers model or from any Hugging Face encoder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from prerank.artifacts import FloatArray, TextArray, require
from prerank.embeddings.config import EncoderConfig
from prerank.embeddings.models import DEFAULT_TEXT, SAFE, load_model, torch_dtype
from prerank.embeddings.shards import Encode, encode_in_shards
from prerank.errors import MissingExtraError
from prerank.spread import Spread, here


def encode_texts(
    texts: TextArray,
    config: EncoderConfig,
    *,
    plain: bool,
    work: Path | None,
    title: str = "text",
    spread: Spread = here,
) -> FloatArray:
    """Return the model's vectors of ``texts`` (N,): (N, D) float32 unit rows, D the model's.

    Each distinct text is encoded once. An empty text gets a row of zeros. The model's own code is
    never run (``trust_remote_code`` is off).

    Args:
        plain: a bare Hugging Face encoder with ``config.pooling``; else sentence-transformers.
        work: a folder for shards that survives a kill, see `shards.encode_in_shards`.
        spread: where shards are computed.

    Raises:
        MissingExtraError: sentence-transformers is not installed.
        ConfigError: the model cannot be loaded.
        DataError: no item has a text.
    """
    distinct, index_N = np.unique(texts, return_inverse=True)
    rows = np.flatnonzero([bool(text.strip()) for text in distinct])
    require(
        len(rows) > 0,
        "no item has a text to encode",
        where="catalog.text",
        got=f"{len(texts)} items",
    )
    thing_M = np.full(len(distinct), -1, dtype=np.int64)
    thing_M[rows] = np.arange(len(rows))
    worded = distinct[rows]
    return encode_in_shards(
        partial(_pooled if plain else _sentences, worded, config),
        len(rows),
        thing_M[index_N],
        shard_items=config.shard_items,
        title=title,
        work=work,
        spread=spread,
    )


def _sentences(texts: TextArray, config: EncoderConfig) -> Encode:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise MissingExtraError(
            "the encoder `sentence-transformers` is not installed",
            where="encode.encoder",
            hint="pip install 'prerank[text]'",
        ) from None
    from prerank.devices import resolve_device

    device = resolve_device(config.device)

    def load(name: str) -> Any:
        return SentenceTransformer(
            name,
            device=str(device),
            trust_remote_code=False,
            model_kwargs={"dtype": torch_dtype(config, device), "use_safetensors": True},
        )

    model = load_model(load, config, DEFAULT_TEXT)

    def encode(start: int, stop: int) -> FloatArray:
        found = model.encode(
            texts[start:stop].tolist(),
            batch_size=config.batch_size,
            show_progress_bar=False,
            convert_to_tensor=True,
        )
        return np.asarray(found.float().cpu().numpy(), dtype=np.float32)

    return encode


def _pooled(texts: TextArray, config: EncoderConfig) -> Encode:
    import torch
    from transformers import AutoModel, AutoTokenizer

    from prerank.devices import resolve_device

    device = resolve_device(config.device)

    def load(name: str) -> Any:
        tokenizer = AutoTokenizer.from_pretrained(
            name, padding_side="right", trust_remote_code=False
        )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model = AutoModel.from_pretrained(name, dtype=torch_dtype(config, device), **SAFE)
        return tokenizer, model.to(device).eval()

    tokenizer, model = load_model(load, config, DEFAULT_TEXT)
    positions = getattr(model.config, "max_position_embeddings", config.max_tokens)
    max_tokens = min(config.max_tokens, tokenizer.model_max_length, positions)

    def encode(start: int, stop: int) -> FloatArray:
        """Batches of texts of like length, longest first: little padding, early out of memory."""
        worded = [config.prefix + text for text in texts[start:stop]]
        order = np.argsort([-len(text) for text in worded], kind="stable")
        parts = []
        for at in range(0, len(order), config.batch_size):
            batch = [worded[n] for n in order[at : at + config.batch_size]]
            fed = tokenizer(
                batch, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
            ).to(device)
            with torch.inference_mode():
                states_BTD = model(**fed).last_hidden_state.float()
                parts.append(pool(states_BTD, fed["attention_mask"], config.pooling).cpu())
        vectors_ND = np.empty((len(order), parts[0].shape[1]), dtype=np.float32)
        vectors_ND[order] = torch.cat(parts).numpy()
        return vectors_ND

    return encode


def pool(states_BTD: Any, mask_BT: Any, pooling: str) -> Any:
    """Return one vector a text, (B, D), from its token states and mask of real tokens (1 or 0).

    ``mean`` of the real tokens, ``cls`` the first one, ``last-token`` the last real one.
    """
    import torch

    if pooling == "cls":
        return states_BTD[:, 0]
    if pooling == "last-token":
        last_B = mask_BT.cumsum(dim=1).argmax(dim=1)
        return states_BTD[torch.arange(len(states_BTD), device=states_BTD.device), last_B]
    weight_BT1 = mask_BT[..., None].to(states_BTD.dtype)
    return (states_BTD * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1).clamp_min(1)
