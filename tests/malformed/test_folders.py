"""Artifacts, checkpoints and models on disk that cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from malformed.told import told
from prerank import artifacts as a
from prerank import store as stores
from prerank.anchors.config import FinetuneConfig
from prerank.anchors.model import build
from prerank.anchors.model import load as load_model
from prerank.anchors.tokens import TOKENS_FILE, SidTokens
from prerank.store import MANIFEST, Store
from tiny import anchors, dataset, labels

SOUND: dict[str, Any] = {
    "kind": "label",
    "fingerprint": "0123456789abcdef",
    "config": {},
    "seed": 0,
    "parents": {},
    "files": {},
    "schema": 1,
}
MANIFESTS: dict[str, str] = {
    "empty": "",
    "half": json.dumps(SOUND)[:50],
    "a list": "[1]",
    "a number": "3",
    "null": "null",
    "noise": "\x00\x01",
    "another schema": json.dumps({**SOUND, "schema": 2}),
    "no schema": json.dumps({k: v for k, v in SOUND.items() if k != "schema"}),
    "no kind": json.dumps({k: v for k, v in SOUND.items() if k != "kind"}),
    "an unknown key": json.dumps({**SOUND, "colour": 1}),
    "kind a number": json.dumps({**SOUND, "kind": 3}),
    "fingerprint null": json.dumps({**SOUND, "fingerprint": None}),
    "config a list": json.dumps({**SOUND, "config": []}),
    "parents a text": json.dumps({**SOUND, "parents": "dataset"}),
    "parents of numbers": json.dumps({**SOUND, "parents": {"dataset": 3}}),
    "files a list": json.dumps({**SOUND, "files": ["a"]}),
    "files of numbers": json.dumps({**SOUND, "files": {"a": 1}}),
    "seed a text": json.dumps({**SOUND, "seed": "0"}),
    "seconds a text": json.dumps({**SOUND, "seconds": "long"}),
    "a file above": json.dumps({**SOUND, "files": {"../secret": "00"}}),
    "a file far above": json.dumps({**SOUND, "files": {"a/../../b": "00"}}),
    "an absolute file": json.dumps({**SOUND, "files": {"/etc/passwd": "00"}}),
    "a file without name": json.dumps({**SOUND, "files": {"": "00"}}),
    "a file with a backslash": json.dumps({**SOUND, "files": {"..\\up": "00"}}),
    "a file that is absent": json.dumps({**SOUND, "files": {"a.parquet": "00"}}),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_that_cannot_be_is_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / MANIFEST).write_text(MANIFESTS[kind])
    with told(str(folder), folder=tmp_path):
        Store(tmp_path).checked("labels")


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc", ".."])
def test_a_key_out_of_the_run_is_refused(tmp_path: Path, key: str) -> None:
    with told(key):
        Store(tmp_path / "run").checked(key)


ARTIFACTS: dict[str, Callable[[], Any]] = {
    "dataset": dataset,
    "anchors": anchors,
    "labels": labels,
    "embeddings": lambda: a.ItemEmbeddings(np.eye(3, dtype=np.float32)),
    "sids": lambda: a.SemanticIds(
        np.array([[0, 1], [1, 0]], np.int32), np.array([2, 2], np.int32), np.eye(4, dtype="f4")
    ),
    "report": lambda: a.Report((a.Record("gpl", "p", "all", "auc", 0.5, None, None, 3, 1),)),
}


def noise(file: Path) -> None:
    file.write_bytes(b"\x00\x01 noise {")


def nothing(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("change", [noise, nothing, Path.unlink])
@pytest.mark.parametrize("name", ARTIFACTS)
def test_files_that_cannot_be_read_are_an_artifact_error(
    tmp_path: Path, name: str, change: Callable[[Path], None]
) -> None:
    """Even where the hashes agree: the largest file of each artifact is something else."""
    made = ARTIFACTS[name]()
    stores.save(tmp_path, made)
    change(max(tmp_path.iterdir(), key=lambda f: (f.suffix != ".json", f.stat().st_size)))
    with told(str(tmp_path)):
        stores.load(tmp_path, type(made))


@pytest.mark.parametrize("name", ["dataset", "labels"])
def test_a_table_without_its_columns_is_an_artifact_error(tmp_path: Path, name: str) -> None:
    import polars as pl

    made = ARTIFACTS[name]()
    stores.save(tmp_path, made)
    file = tmp_path / {"dataset": "exposures.parquet", "labels": "labels.parquet"}[name]
    pl.read_parquet(file).drop("user").write_parquet(file)
    with told(str(tmp_path)):
        stores.load(tmp_path, type(made))


TOKENS: dict[str, str] = {
    "empty": "",
    "a list": "[]",
    "no first": '{"codebook_sizes": [2]}',
    "no sizes": '{"first": 0}',
    "sizes a number": '{"first": 0, "codebook_sizes": 3}',
    "sizes of text": '{"first": 0, "codebook_sizes": ["x"]}',
    "first null": '{"first": null, "codebook_sizes": [2]}',
}


@pytest.mark.parametrize("kind", TOKENS)
def test_a_token_map_that_cannot_be_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / TOKENS_FILE).write_text(TOKENS[kind])
    with told(TOKENS_FILE):
        SidTokens.load(tmp_path)


LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 8,
    "vocab_size": 8,
}
CHECKPOINTS: dict[str, dict[str, str | bytes]] = {
    "an empty folder": {},
    "config of noise": {"config.json": "{"},
    "config a list": {"config.json": "[]"},
    "no model type": {"config.json": "{}"},
    "unknown model type": {"config.json": '{"model_type": "abacus"}'},
    "no language model": {"config.json": '{"model_type": "vit"}'},
    "no weights": {"config.json": json.dumps(LLAMA)},
    "weights of noise": {"config.json": json.dumps(LLAMA), "model.safetensors": b"noise"},
    "weights cut short": {
        "config.json": json.dumps(LLAMA),
        "model.safetensors": b"\x40\x00\x00\x00\x00\x00\x00\x00{",
    },
    "pickled weights": {"config.json": json.dumps(LLAMA), "pytorch_model.bin": b"\x80\x04."},
    "code of its own": {
        "config.json": json.dumps(
            {
                "model_type": "own",
                "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"},
            }
        ),
        "o.py": "raise SystemExit('the code of a checkpoint was run')",
    },
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_checkpoint_that_cannot_be_is_refused(tmp_path: Path, kind: str) -> None:
    for name, content in CHECKPOINTS[kind].items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    config = FinetuneConfig(init="checkpoint", checkpoint=str(tmp_path))
    with told("finetune.checkpoint", folder=tmp_path):
        build(config, (2, 2), seed=0)
    import torch

    SidTokens(0, (2, 2)).save(tmp_path)
    with told(str(tmp_path)):
        load_model(tmp_path, torch.device("cpu"), torch.float32)


RANKERS: dict[str, dict[str, str | bytes]] = {
    "empty": {},
    "no weights": {"pre_ranker.json": '{"config": {}, "schema": {}, "history": []}'},
    "noise": {"pre_ranker.json": "{", "weights.safetensors": b"noise"},
    "weights of noise": {"pre_ranker.json": "{}", "weights.safetensors": b"noise"},
    "a list": {"pre_ranker.json": "[]"},
}


@pytest.mark.parametrize("kind", RANKERS)
def test_a_pre_ranker_that_cannot_be_is_refused(tmp_path: Path, kind: str) -> None:
    from prerank.ranking.pre_ranker import PreRanker

    for name, content in RANKERS[kind].items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if kind == "a list":
        save_file({"x": np.zeros(1, np.float32)}, tmp_path / "weights.safetensors")
    with told(str(tmp_path)):
        PreRanker.load(tmp_path, dataset(), a.ItemEmbeddings(np.eye(4, dtype=np.float32)))
