"""generate: AnchorModel and histories -> InterestAnchors, once per user, in shards.

Users are sorted by history length and cut into shards, which one process or several finish
(`prerank.anchors.shards`). A killed run skips the shards that stand; the result does not depend on
where it was killed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from prerank import seeds
from prerank.anchors.buckets import anchors_of_leaves, bucket_vectors, trie_of
from prerank.anchors.config import GenerateConfig
from prerank.anchors.sequences import Sequences, anchor_sequences, is_unordered
from prerank.anchors.shards import (
    Decoder,
    Job,
    Shard,
    decode_elsewhere,
    read_shard,
    shard_file,
    work_through,
)
from prerank.anchors.trie import Trie
from prerank.artifacts import Dataset, FloatArray, InterestAnchors, ItemEmbeddings, SemanticIds
from prerank.errors import ArtifactError, ConfigError
from prerank.progress import log
from prerank.spread import Spread, here

BYTES_A_PLACE = 16
"""A shard keeps a leaf and two log-probabilities an anchor."""


def generate(
    dataset: Dataset,
    semantic_ids: SemanticIds,
    embeddings: ItemEmbeddings,
    model_dir: Path,
    config: GenerateConfig,
    seed: int,
    work: Path,
    workers: int = 1,
    spread: Spread = here,
    source: str = "llm",
) -> InterestAnchors:
    """Return every user's most probable semantic IDs as points of content space.

    Histories are the positives strictly before ``dataset.cuts.anchors``, most recent last; where
    the data has no time, a seeded random order. Longer ones are cut as ``history_sample`` says. A
    user without history gets no anchors. A user gets fewer than ``n_anchors`` where the catalogue
    or the quota leaves fewer.

    Args:
        model_dir: what `prerank.anchors.finetune.finetune` wrote.
        work: a folder that survives a kill, for this config, seed and these inputs only.
        workers: processes that decode side by side; cores and GPUs are shared among them.
        spread: where shards are decoded; elsewhere, ``workers`` does not matter.
        source: ``llm``, or ``llm-debiased``: ranked with ``popularity_correction`` (extension).

    Raises:
        ArtifactError: ``model_dir`` holds no anchor model, or the disk is full.
        ConfigError: the model was made for other semantic IDs, or the beams are too few.
    """
    trie = trie_of(semantic_ids, embeddings)
    config = config.of_source(source)
    job = make_job(dataset, semantic_ids, model_dir, config, seed)
    made = _finished(job, work, trie)
    todo = [number for number, shard in enumerate(made) if shard is None]
    n_processes = max(1, min(workers, len(todo)))
    if spread is not here:
        decode_elsewhere(job, todo, work, spread)
    elif todo:
        with _threads(n_processes):
            decoder = Decoder.of(job)
            _announce(decoder, todo, n_processes, embeddings.vectors.shape[1])
            job.save(work)
            with _helpers(work, decoder, n_processes - 1):
                work_through(decoder, work)
    parts = [_whole(work, number, shard) for number, shard in enumerate(_finished(job, work, trie))]
    vectors_SD = bucket_vectors(trie, embeddings)
    return _assemble(parts, len(dataset.users), config.n_anchors, trie, vectors_SD, source)


def _finished(job: Job, work: Path, trie: Trie) -> Iterator[Shard | None]:
    """Yield every shard of a job, None where it is not finished."""
    about = (job.config.n_anchors, trie.n_leaves)
    for number, users in enumerate(job.shards):
        yield read_shard(shard_file(work, number), users, *about)


def _whole(work: Path, number: int, shard: Shard | None) -> Shard:
    if shard is None:
        raise ArtifactError(
            "a finished shard of anchors has been changed",
            where=str(shard_file(work, number)),
            must="as it was written",
            hint="run the same command again: it is made anew",
        )
    return shard


def make_job(
    dataset: Dataset,
    semantic_ids: SemanticIds,
    model_dir: Path,
    config: GenerateConfig,
    seed: int,
) -> Job:
    """Return what is to be decoded; arguments and errors as of `generate`."""
    sizes = tuple(int(size) for size in semantic_ids.codebook_sizes)
    _require_enough_beams(config, len(sizes))
    histories = read_histories(dataset, semantic_ids, config, seed)
    order = np.argsort(histories.lengths, kind="stable")
    users = order[histories.lengths[order] > 0]
    codes = semantic_ids.codes
    frequency = np.zeros(len(codes), np.int64)
    if config.popularity_correction:  # else nothing reads it, and the log may be long
        frequency += np.bincount(anchor_sequences(dataset).item, minlength=len(codes))
    return Job(model_dir, config, histories, users, codes, sizes, frequency)


def decode_some(
    dataset: Dataset,
    semantic_ids: SemanticIds,
    embeddings: ItemEmbeddings,
    model_dir: Path,
    config: GenerateConfig,
    seed: int,
    n_users: int,
    source: str = "llm",
) -> tuple[NDArray[np.int64], InterestAnchors]:
    """Decode about ``n_users`` users once more, in the very batches that `generate` put them in.

    Returns:
        (B,) the users, and their anchors in this order; at most one batch of each shard.
    """
    trie = trie_of(semantic_ids, embeddings)
    config = config.of_source(source)
    decoder = Decoder.of(make_job(dataset, semantic_ids, model_dir, config, seed))
    stream = seeds.rng(seed, "generate", "replay")
    parts: list[Shard] = []
    for number in stream.permutation(len(decoder.job.shards)):
        if sum(len(part["user"]) for part in parts) >= n_users:
            break
        batches = decoder.batches(decoder.job.shards[number])
        parts.append(decoder.decode(batches[stream.integers(len(batches))]))
    if not parts:
        nobody = _assemble([], 0, config.n_anchors, trie, embeddings.vectors, source)
        return np.zeros(0, np.int64), nobody
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    users = joined["user"]
    joined["user"] = np.arange(len(users))
    vectors_SD = bucket_vectors(trie, embeddings)
    return users, _assemble([joined], len(users), config.n_anchors, trie, vectors_SD, source)


def read_histories(
    dataset: Dataset, semantic_ids: SemanticIds, config: GenerateConfig, seed: int
) -> Sequences:
    """Return what the model reads of each user, (U,): at most ``max_history`` items."""
    histories = anchor_sequences(dataset)
    if is_unordered(dataset, "auto"):
        histories = histories.shuffled(seeds.rng(seed, "generate", "order"))
    if config.history_sample == "clusters":
        return histories.spread(config.max_history, semantic_ids.codes[:, 0])
    return histories.last(config.max_history)


def _require_enough_beams(config: GenerateConfig, n_levels: int) -> None:
    last = config.widths(n_levels)[-1]
    if config.n_anchors > last:
        raise ConfigError(
            "more anchors than beams",
            where="generate.n_anchors",
            must=f"at most {last}, the beams of the last level",
            got=config.n_anchors,
            hint="raise beam_width or beam_growth; the largest n_anchors of a method counts",
        )


def _announce(decoder: Decoder, todo: list[int], n_processes: int, n_dims: int) -> None:
    """Say what is ahead: users, hours and gigabytes. One batch is timed if there is much."""
    job, config = decoder.job, decoder.job.config
    shards = [job.shards[number] for number in todo]
    n_users = sum(len(shard) for shard in shards)
    places = n_users * config.n_anchors
    gigabytes = places * BYTES_A_PLACE / 1e9
    stored = places * (4 * len(job.codebook_sizes) + 12) + 4 * n_dims * decoder.trie.n_leaves
    message = f"generate: {n_users} users in {len(todo)} of {len(job.shards)} shards"
    if n_users > 8 * config.batch_size:
        batches = decoder.batches(shards[len(shards) // 2])
        middle = batches[len(batches) // 2]
        started = time.monotonic()
        decoder.decode(middle)
        rate = n_processes * len(middle) / (time.monotonic() - started)
        message += f"; about {rate:.0f} users/s, {n_users / rate / 3600:.2f} h"
    several = f" in {n_processes} processes" if n_processes > 1 else ""
    log(f"{message}{several}; {gigabytes:.3f} GB of shards, then {stored / 1e9:.3f} GB of anchors")


@contextmanager
def _threads(n_processes: int) -> Iterator[None]:
    """Give each process its share of the cores: two pools of threads on one core collapse."""
    before = torch.get_num_threads()
    if n_processes > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // n_processes))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _helpers(work: Path, decoder: Decoder, count: int) -> Iterator[None]:
    """Run ``count`` more processes on the job."""
    threads = str(torch.get_num_threads())
    started = []
    for number in range(1, count + 1):
        device = str(decoder.device)
        if device == "cuda":
            device = f"cuda:{number % torch.cuda.device_count()}"
        command = [sys.executable, "-m", "prerank.anchors.shards", str(work), "--quiet"]
        command += ["--device", device, "--threads", threads, "--parent", str(os.getpid())]
        started.append(subprocess.Popen(command))
    try:
        yield
    finally:  # all shards are finished, or we failed: nothing is left for them to do
        for process in started:
            process.terminate()
            process.wait()


def _assemble(
    parts: list[Shard],
    n_users: int,
    n_anchors: int,
    trie: Trie,
    vectors_SD: FloatArray,
    source: str,
) -> InterestAnchors:
    leaf_UA = np.full((n_users, n_anchors), -1, dtype=np.int64)
    logprob_UA = np.zeros((n_users, n_anchors), dtype=np.float32)
    legal_UA = np.zeros((n_users, n_anchors), dtype=np.float32)
    for part in parts:
        leaf_UA[part["user"]] = part["leaf"]
        logprob_UA[part["user"]] = part["logprob"]
        legal_UA[part["user"]] = part["logprob_legal"]
    return anchors_of_leaves(leaf_UA, trie, vectors_SD, source, logprob_UA, legal_UA)
