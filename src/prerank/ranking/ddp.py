"""Train one pre-ranker with several processes, started by torchrun.

    torchrun --nproc-per-node 2 -m prerank.ranking.ddp --dataset runs/mine/dataset \
        --embeddings runs/mine/embeddings --labels runs/mine/labels/gpl \
        --config train.json --seed 0 --out ranker

The folders are artifacts of a run; ``train.json`` holds keys of ``[train]``. The first process
writes the pre-ranker. Processes meet by NCCL on GPUs, by Gloo on CPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

import torch
from torch import distributed

from prerank import progress, store
from prerank.artifacts import Dataset, ItemEmbeddings, PseudoLabels
from prerank.devices import resolve_device
from prerank.errors import ConfigError, PrerankError
from prerank.ranking.config import TrainConfig, earned_weight
from prerank.ranking.pre_ranker import ABOUT, WEIGHTS, PreRanker
from prerank.ranking.train import train


def main() -> None:
    """Join the other processes, train, and write on the first."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--embeddings", type=Path, required=True)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--config", type=Path, required=True, help="JSON of the keys of [train]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    try:
        _run(options)
    except PrerankError as error:
        print(error, file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 3)


def _run(options: argparse.Namespace) -> None:
    try:
        values = json.loads(options.config.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError("cannot be read", where=str(options.config), got=error) from None
    if not isinstance(values, dict):
        raise ConfigError("holds no keys", where=str(options.config), must="a JSON object")
    config = TrainConfig.parse(values, where=str(options.config))
    out = options.out.resolve()
    _require_replaceable(out)
    if resolve_device(config.device).type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        torch.cuda.set_device(local)
        config = config.model_copy(update={"device": f"cuda:{local}"})
        distributed.init_process_group("nccl")
    else:
        distributed.init_process_group("gloo")
    try:
        first = distributed.get_rank() == 0
        if not first:
            progress.silence()
        labels = store.load(options.labels, PseudoLabels) if options.labels else None
        dataset = store.load(options.dataset, Dataset)
        embeddings = store.load(options.embeddings, ItemEmbeddings)
        weighed = earned_weight(config, labels)
        ranker = train(dataset, embeddings, labels, weighed, options.seed)
        if first:
            _write(ranker, out)
    finally:
        distributed.destroy_process_group()


def _require_replaceable(out: Path) -> None:
    """Raise ConfigError where ``out`` holds anything but a pre-ranker: writing replaces it."""
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    others = sorted(there - {WEIGHTS, ABOUT})
    if others or (out.exists() and not out.is_dir()):
        raise ConfigError(
            "the folder holds something else",
            where=f"--out {out}",
            must="a new folder, or one that a pre-ranker was written to",
            got=", ".join(others[:3]) or "a file",
        )


def _write(ranker: PreRanker, out: Path) -> None:
    """Write a folder that is whole or not there."""
    partial = out.with_name(f"{out.name}.{os.getpid()}.part")
    partial.mkdir(parents=True)
    try:
        ranker.save(partial)
        store.swap(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


if __name__ == "__main__":
    main()
