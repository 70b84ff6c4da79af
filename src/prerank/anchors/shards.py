"""The work of `generate`, cut into shards that any number of processes share.

A job is a folder: ``job.json`` and ``job.safetensors`` say what to decode, one file a finished
shard follows. A process claims a shard by a lock on a file, which the system drops when the
process dies, and publishes it by one rename. So processes may start, stop and be killed at any
moment, on one machine or on several with a common folder:

    python -m prerank.anchors.shards FOLDER [--device cuda:1] [--threads 2]

Shard s is the same bytes whoever makes it, on equal machines with equal numbers of threads.

Letters: U users, N items of all histories, B users of a batch, A anchors, L levels, I items.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from prerank.anchors.beam import Reader, reader_of, tree_beam_search
from prerank.anchors.config import GenerateConfig
from prerank.anchors.model import load, require_window, resolve_dtype
from prerank.anchors.sequences import Sequences, token_chunks
from prerank.anchors.tokens import SidTokens
from prerank.anchors.trie import LevelTable, Trie, level_tables
from prerank.artifacts import IntArray
from prerank.devices import resolve_device
from prerank.errors import ArtifactError, first_line
from prerank.lock import die_with
from prerank.progress import log, silence, track
from prerank.spread import Arrays, Spread
from prerank.store import read_part, write_part, write_whole

Shard = dict[str, NDArray[Any]]
PRIOR_COUNT = 5.0
"""Occurrences added to each semantic ID's own: a rare one must not be preferred for its rarity."""
PLACES = ("leaf", "logprob", "logprob_legal")
JOB_JSON, JOB_ARRAYS = "job.json", "job.safetensors"
WAIT_S = 0.2


@dataclass(frozen=True, eq=False)
class Job:
    """All that decoding needs.

    Attributes:
        model_dir: the anchor model.
        config: how to decode.
        histories: (U,) item sequences, cut to what the model reads.
        users: the users with a history, shortest history first.
        codes: (I, L) int32 semantic IDs, of ``codebook_sizes``.
        frequency: (I,) int64 how often each item stands in all histories, for
            ``popularity_correction``; zeros where that is 0.
    """

    model_dir: Path
    config: GenerateConfig
    histories: Sequences
    users: NDArray[np.int64]
    codes: IntArray
    codebook_sizes: tuple[int, ...]
    frequency: NDArray[np.int64]

    @property
    def shards(self) -> list[NDArray[np.int64]]:
        """The users of each shard."""
        size = self.config.shard_users
        return [self.users[at : at + size] for at in range(0, len(self.users), size)]

    def save(self, folder: Path) -> None:
        """Write the job for other processes; the JSON comes last and says that it is whole."""
        arrays: Shard = {
            "item": self.histories.item,
            "offsets": self.histories.offsets,
            "users": self.users,
            "codes": np.ascontiguousarray(self.codes),
            "frequency": self.frequency,
        }
        about = {
            "model": str(self.model_dir.resolve()),
            "codebook_sizes": self.codebook_sizes,
            "config": self.config.model_dump(mode="json"),
        }
        _write(folder / JOB_ARRAYS, arrays)
        write_whole(folder / JOB_JSON, json.dumps(about, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Job:
        """Read a job; raise ArtifactError if the folder holds none."""
        try:
            about = json.loads((folder / JOB_JSON).read_text())
            arrays = read_part(folder / JOB_ARRAYS)
            if arrays is None:
                raise ValueError(f"{JOB_ARRAYS} is absent or damaged")
            return cls(
                Path(about["model"]),
                GenerateConfig.parse(about["config"], where=str(folder / JOB_JSON)),
                Sequences(arrays["item"], arrays["offsets"]),
                arrays["users"],
                arrays["codes"],
                tuple(about["codebook_sizes"]),
                arrays["frequency"],
            )
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise ArtifactError(
                "the folder holds no decoding job",
                where=str(folder),
                must=f"{JOB_JSON} and {JOB_ARRAYS}, as `prerank generate` wrote them",
                got=f"{type(error).__name__}: {first_line(error)[:200]}",
                hint="`prerank generate` makes one in its run's folder, under .work/",
            ) from None

    def bonus(self, trie: Trie) -> tuple[NDArray[np.float32], ...] | None:
        """Return what popularity takes off the rank of each child of the trie; None: nothing.

        -popularity_correction * log p(sid), spread over the levels of its path (extension, ours).
        """
        beta = self.config.popularity_correction
        if beta == 0:
            return None
        count_S = np.bincount(trie.leaf_of_item, self.frequency, trie.n_leaves)
        shares = trie.log_shares(count_S.astype(np.float64) + PRIOR_COUNT)
        return tuple(np.float32(-beta) * share for share in shares)


@dataclass(frozen=True, eq=False)
class Decoder:
    """A job with its model and trie on a device."""

    job: Job
    reader: Reader
    tokens: SidTokens
    trie: Trie
    tables: tuple[LevelTable, ...]
    item_tokens: NDArray[np.int64]
    device: torch.device

    @classmethod
    def of(cls, job: Job, device_name: str = "") -> Decoder:
        """Load model and trie.

        Raises:
            ArtifactError: there is no anchor model.
            ConfigError: the model was made for other semantic IDs or for shorter histories.
        """
        config, n_levels = job.config, len(job.codebook_sizes)
        device = resolve_device(device_name or config.device)
        lm, tokens = load(job.model_dir, device, resolve_dtype(config.dtype, device))
        n_rows = lm.get_input_embeddings().weight.shape[0]
        where = str(job.model_dir)
        tokens.check_vocabulary(n_rows, np.array(job.codebook_sizes, np.int32), where=where)
        longest = int(job.histories.lengths.max(initial=0))
        require_window(lm, longest, n_levels, "generate.max_history", after=1 + n_levels)
        trie = Trie.of(job.codes, job.codebook_sizes)
        return cls(
            job,
            reader_of(lm),
            tokens,
            trie,
            level_tables(trie, device, bonus=job.bonus(trie)),
            tokens.encode(job.codes),
            device,
        )

    def batches(self, users: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Cut users, sorted by length, into batches of bounded memory."""
        config, n_levels = self.job.config, len(self.job.codebook_sizes)
        beams = sum(config.widths(n_levels)[:-1])
        n_tokens = 1 + self.job.histories.lengths[users] * n_levels + beams
        return token_chunks(users, n_tokens, config.tokens_at_once, config.batch_size)

    def decode(self, users: NDArray[np.int64]) -> Shard:
        """Return user (B,), leaf, logprob and logprob_legal (B, n_anchors) of one batch."""
        config, n_levels = self.job.config, self.tokens.n_levels
        items_BH, lengths_B = self.job.histories.padded(users)
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
            config.widths(n_levels),
            config.first_code_quota,
        )
        return {
            "user": users,
            "leaf": _columns(beams.leaf, config.n_anchors, -1),
            "logprob": _columns(beams.logprob, config.n_anchors, -math.inf),
            "logprob_legal": _columns(beams.logprob_legal, config.n_anchors, -math.inf),
        }

    def decode_shard(self, users: NDArray[np.int64]) -> Shard:
        """Return one shard, decoded batch by batch."""
        parts = [self.decode(batch) for batch in track(self.batches(users), "batches")]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _columns(values_UA: torch.Tensor, n_columns: int, fill: float) -> NDArray[Any]:
    kept = values_UA[:, :n_columns]
    lacking = n_columns - kept.shape[1]
    return torch.nn.functional.pad(kept, (0, lacking), value=fill).cpu().numpy()


def shard_file(folder: Path, number: int) -> Path:
    """Return the file of a finished shard."""
    return folder / f"anchors-{number:05d}.safetensors"


def read_shard(file: Path, users: NDArray[np.int64], n_anchors: int, n_leaves: int) -> Shard | None:
    """Return the finished shard of ``users``; None if it is absent, damaged or another job's."""
    shard: Shard | None = read_part(file)
    if shard is None or not np.array_equal(shard.get("user", ()), users):
        return None
    shape = (len(users), n_anchors)
    if not all(name in shard and shard[name].shape == shape for name in PLACES):
        return None
    leaf = shard["leaf"]
    return shard if leaf.dtype.kind == "i" and leaf.max(initial=-1) < n_leaves else None


def work_through(decoder: Decoder, folder: Path) -> None:
    """Decode shards that nobody has claimed until all are finished, whoever finished them.

    Raises:
        ArtifactError: a shard cannot be written (a full disk); finished shards stay.
    """
    shards = decoder.job.shards
    left = list(range(len(shards)))
    while left:
        before = len(left)
        left = [
            number
            for number in track(left, "shards")
            if not _finish(decoder, folder, number, shards[number])
        ]
        if len(left) == before:  # others work on all that is left; should one die, we take over
            time.sleep(WAIT_S)


def decode_elsewhere(job: Job, todo: list[int], work: Path, spread: Spread) -> None:
    """Decode the shards ``todo`` where ``spread`` likes; each is a file in ``work`` when it comes.

    Workers see neither this machine's files nor its memory: the model travels with the job.
    """
    files = {
        str(file.relative_to(job.model_dir)): np.frombuffer(file.read_bytes(), np.uint8)
        for file in sorted(job.model_dir.rglob("*"))
        if file.is_file()
    }
    tasks = [{"users": job.shards[number]} for number in todo]
    for place, shard in track(spread(partial(_ready, job, files), tasks), "generate", len(todo)):
        _write(shard_file(work, todo[place]), dict(shard))


def _ready(job: Job, files: Arrays) -> Callable[[Arrays], Arrays]:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            file = Path(folder) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.tobytes())
        decoder = Decoder.of(replace(job, model_dir=Path(folder)))
    return lambda task: decoder.decode_shard(task["users"])


def _finish(decoder: Decoder, folder: Path, number: int, users: NDArray[np.int64]) -> bool:
    """Make shard ``number`` unless it stands; False if another process is at it."""
    file = shard_file(folder, number)
    about = (users, decoder.job.config.n_anchors, decoder.trie.n_leaves)
    if read_shard(file, *about) is not None:
        return True
    with claimed(file.with_suffix(".claim")) as is_ours:
        if is_ours and read_shard(file, *about) is None:
            _write(file, decoder.decode_shard(users))
    return is_ours


@contextmanager
def claimed(file: Path) -> Iterator[bool]:
    """Hold the lock on ``file`` if it is free; yield whether it was."""
    with file.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def _write(file: Path, arrays: Shard) -> None:
    """Write all of the file or none.

    Raises:
        ArtifactError: it cannot be written.
    """
    try:
        write_part(file, arrays)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            "a file of work in progress cannot be written",
            where=str(file),
            got=error,
            hint="free some space and run again; finished shards are kept",
        ) from None


def main(arguments: list[str] | None = None) -> None:
    """Join the work on a job's folder from another process or machine."""
    parser = argparse.ArgumentParser(description="decode shards of a job until all are finished")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="", help="instead of the job's")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--quiet", action="store_true", help="no log, no progress")
    parser.add_argument("--parent", type=int, default=0, help="end when this parent process ends")
    options = parser.parse_args(arguments)
    silence(options.quiet)
    if options.parent:
        die_with(options.parent)
    if options.threads:
        torch.set_num_threads(options.threads)
    decoder = Decoder.of(Job.load(options.folder), options.device)
    work_through(decoder, options.folder)
    log(f"generate: process {os.getpid()} is done")


if __name__ == "__main__":
    main()
