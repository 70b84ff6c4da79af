"""generate: AnchorModel and histories -> InterestAnchors, once per user, in shards.

Users are sorted by history length and cut into shards; each finished shard is one file in the work
folder, written under another name and renamed. A killed run skips the shards that stand there; the
result does not depend on where it was killed.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from prerank import seeds
from prerank.anchors.beam import Reader, reader_of, tree_beam_search
from prerank.anchors.buckets import anchors_of_leaves, bucket_vectors, trie_of
from prerank.anchors.config import GenerateConfig
from prerank.anchors.model import load, resolve_dtype
from prerank.anchors.sequences import Sequences, anchor_sequences, is_unordered
from prerank.anchors.tokens import SidTokens
from prerank.anchors.trie import LevelTable, Trie, level_tables
from prerank.artifacts import Dataset, InterestAnchors, ItemEmbeddings, SemanticIds
from prerank.devices import resolve_device
from prerank.errors import ConfigError
from prerank.progress import log, track

Shard = dict[str, NDArray[Any]]


def generate(
    dataset: Dataset,
    semantic_ids: SemanticIds,
    embeddings: ItemEmbeddings,
    model_dir: Path,
    config: GenerateConfig,
    seed: int,
    work: Path,
) -> InterestAnchors:
    """Return every user's most probable semantic IDs as points of content space.

    Histories are the positives strictly before ``dataset.cuts.anchors``, most recent last; where
    the data has no time, a seeded random order. A user without history gets no anchors. A user
    gets fewer than ``n_anchors`` where the catalogue or the quota leaves fewer.

    Args:
        model_dir: what `prerank.anchors.finetune.finetune` wrote.
        work: a folder that survives a kill, for this config, seed and these inputs only.

    Raises:
        ArtifactError: ``model_dir`` holds no anchor model.
        ConfigError: the model was made for other semantic IDs, or the beams are too few.
    """
    trie = trie_of(semantic_ids, embeddings)
    histories = anchor_sequences(dataset)
    if is_unordered(dataset, "auto"):
        histories = histories.shuffled(seeds.rng(seed, "generate", "order"))
    histories = histories.last(config.max_history)
    order = np.argsort(histories.lengths, kind="stable")
    users = order[histories.lengths[order] > 0]

    decoder = _decoder(semantic_ids, trie, model_dir, config)
    shards = [
        users[at : at + config.shard_users] for at in range(0, len(users), config.shard_users)
    ]
    files = [work / f"anchors-{n:05d}.safetensors" for n in range(len(shards))]
    todo = [n for n in range(len(shards)) if read_shard(files[n], shards[n]) is None]
    if todo:
        _announce(decoder, histories, [shards[n] for n in todo], len(shards))
    for n in todo:
        title = f"generate: shard {n + 1} of {len(shards)}"
        _write_shard(files[n], _decode_shard(decoder, histories, shards[n], title))

    parts = [read_shard(file, shard) or {} for file, shard in zip(files, shards, strict=True)]
    return _assemble(parts, len(dataset.users), config.n_anchors, decoder, semantic_ids, embeddings)


@dataclass(frozen=True, eq=False)
class _Decoder:
    """All that decoding a batch of users needs."""

    reader: Reader
    tokens: SidTokens
    trie: Trie
    tables: tuple[LevelTable, ...]
    item_tokens: NDArray[np.int64]
    config: GenerateConfig
    device: torch.device

    def decode(self, histories: Sequences, users: NDArray[np.int64]) -> Shard:
        """Return user (B,), leaf, logprob and logprob_legal (B, n_anchors) of one batch."""
        items_BH, lengths_B = histories.padded(users)
        n_levels, n_keep = self.tokens.n_levels, self.config.n_anchors
        history_BT = np.full((len(users), 1 + items_BH.shape[1] * n_levels), self.tokens.pad)
        history_BT[:, 0] = self.tokens.begin
        # Whatever stands in the padding (item -1 reads the last item) is never attended to.
        history_BT[:, 1:] = self.item_tokens[items_BH].reshape(len(users), -1)
        beams = tree_beam_search(
            self.reader,
            self.tables,
            self.tokens.level_starts,
            torch.from_numpy(history_BT).to(self.device),
            torch.from_numpy(1 + lengths_B * n_levels).to(self.device),
            self.config.widths(n_levels),
            self.config.first_code_quota,
        )
        return {
            "user": users,
            "leaf": _columns(beams.leaf, n_keep, -1),
            "logprob": _columns(beams.logprob, n_keep, -math.inf),
            "logprob_legal": _columns(beams.logprob_legal, n_keep, -math.inf),
        }


def _columns(values_UA: torch.Tensor, n_columns: int, fill: float) -> NDArray[Any]:
    kept = values_UA[:, :n_columns]
    lacking = n_columns - kept.shape[1]
    return torch.nn.functional.pad(kept, (0, lacking), value=fill).cpu().numpy()


def _decoder(
    semantic_ids: SemanticIds, trie: Trie, model_dir: Path, config: GenerateConfig
) -> _Decoder:
    last = config.widths(semantic_ids.n_levels)[-1]
    if config.n_anchors > last:
        raise ConfigError(
            "more anchors than beams",
            where="generate.n_anchors",
            must=f"at most {last}, the beams of the last level",
            got=config.n_anchors,
            hint="raise beam_width or beam_growth",
        )
    device = resolve_device(config.device)
    lm, tokens = load(model_dir, device, resolve_dtype(config.dtype, device))
    n_rows = lm.get_input_embeddings().weight.shape[0]
    tokens.check_vocabulary(n_rows, semantic_ids.codebook_sizes, where=str(model_dir))
    item_tokens = tokens.encode(semantic_ids.codes)
    tables = level_tables(trie, device)
    return _Decoder(reader_of(lm), tokens, trie, tables, item_tokens, config, device)


def _announce(
    decoder: _Decoder, histories: Sequences, shards: list[NDArray[np.int64]], n_shards: int
) -> None:
    """Say what is ahead; time one batch of middling length if there is much."""
    n_users, size = sum(len(shard) for shard in shards), decoder.config.batch_size
    message = f"generate: {n_users} users in {len(shards)} of {n_shards} shards"
    if n_users > 20 * size:
        middle = shards[len(shards) // 2]
        started = time.monotonic()
        decoder.decode(histories, middle[len(middle) // 2 :][:size])
        rate = min(size, len(middle)) / (time.monotonic() - started)
        message += f", about {rate:.0f} users/s, {n_users / rate / 60:.1f} min"
    log(message)


def _decode_shard(
    decoder: _Decoder, histories: Sequences, users: NDArray[np.int64], title: str
) -> Shard:
    size = decoder.config.batch_size
    starts = range(0, len(users), size)
    parts = [decoder.decode(histories, users[at : at + size]) for at in track(starts, title)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _write_shard(file: Path, shard: Shard) -> None:
    partial = file.with_suffix(".part")
    save_file(shard, partial)
    partial.replace(file)


def read_shard(file: Path, users: NDArray[np.int64]) -> Shard | None:
    """Return the finished shard of ``users``; None if absent, truncated or of other users."""
    try:
        shard: Shard = load_file(file)
    except (OSError, SafetensorError):
        return None
    same = "user" in shard and np.array_equal(shard["user"], users)
    return shard if same else None


def _assemble(
    parts: list[Shard],
    n_users: int,
    n_anchors: int,
    decoder: _Decoder,
    semantic_ids: SemanticIds,
    embeddings: ItemEmbeddings,
) -> InterestAnchors:
    leaf_UA = np.full((n_users, n_anchors), -1, dtype=np.int64)
    logprob_UA = np.zeros((n_users, n_anchors), dtype=np.float32)
    legal_UA = np.zeros((n_users, n_anchors), dtype=np.float32)
    for part in parts:
        leaf_UA[part["user"]] = part["leaf"]
        logprob_UA[part["user"]] = part["logprob"]
        legal_UA[part["user"]] = part["logprob_legal"]
    vectors_SD = bucket_vectors(decoder.trie, semantic_ids, embeddings)
    return anchors_of_leaves(leaf_UA, decoder.trie, vectors_SD, "llm", logprob_UA, legal_UA)
