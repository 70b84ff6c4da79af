"""Hand-sized inputs for the tests of anchors: models, tries and a data set of histories only."""

from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from prerank import artifacts as a
from prerank.anchors.tokens import SidTokens
from prerank.vocabulary import Vocabulary


def random_lm(
    codebook_sizes: tuple[int, ...], seed: int = 0, kv_heads: int = 1
) -> Qwen2ForCausalLM:
    """Return a tiny decoder with random, far from uniform, predictions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = Qwen2Config(
            vocab_size=SidTokens(0, codebook_sizes).size,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=kv_heads,
            initializer_range=0.6,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        return Qwen2ForCausalLM(config).eval()


def random_codes(n_items: int, codebook_sizes: tuple[int, ...], seed: int = 0) -> a.IntArray:
    rng = np.random.default_rng(seed)
    columns = [rng.integers(size, size=n_items) for size in codebook_sizes]
    return np.stack(columns, axis=1).astype(np.int32)


def semantic_ids(codes: a.IntArray, codebook_sizes: tuple[int, ...], dim: int = 4) -> a.SemanticIds:
    codebooks = np.random.default_rng(1).normal(size=(sum(codebook_sizes), dim))
    return a.SemanticIds(codes, np.array(codebook_sizes, np.int32), codebooks.astype(np.float32))


def unit_rows(n_rows: int, dim: int = 4, seed: int = 2) -> a.ItemEmbeddings:
    vectors = np.random.default_rng(seed).normal(size=(n_rows, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return a.ItemEmbeddings(vectors.astype(np.float32))


def dataset(
    histories: list[list[int]],
    n_items: int,
    time_unit: a.TimeUnit = "order",
    cut: int | None = None,
) -> a.Dataset:
    """Return a data set with one user a history; an item's time is its place in the list."""
    lengths = [len(history) for history in histories]
    interactions = a.Interactions(
        user=np.repeat(np.arange(len(histories), dtype=np.int32), lengths),
        item=np.array([item for history in histories for item in history], np.int32),
        time=np.concatenate([np.arange(n, dtype=np.int64) for n in lengths] or [np.empty(0)])
        if time_unit != "none"
        else np.zeros(sum(lengths), np.int64),
    )
    titles = np.array([f"item {n}" for n in range(n_items)], object)
    i32, i64, i8, f32 = (np.empty(0, kind) for kind in (np.int32, np.int64, np.int8, np.float32))
    return a.Dataset(
        name="histories",
        time_unit=time_unit,
        users=Vocabulary(np.array([f"u{n:04d}" for n in range(len(histories))])),
        items=Vocabulary(np.array([f"i{n:04d}" for n in range(n_items)])),
        user_features=a.Features(len(histories)),
        catalog=a.Catalog(titles, titles, a.Features(n_items)),
        exposures=a.Exposures(i64, i32, i32, i64, i8, i32, f32, i8),
        candidates=a.Candidates(i64, i32, i32, i64, i8, f32, f32),
        interactions=interactions,
        pools=a.Pools(np.empty(0, np.int16), i8, i64, i32, i32, i64, i8),
        cuts=a.Cuts(anchors=cut),
    )


def folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path
