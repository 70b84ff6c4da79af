"""A run of seconds: 60 users, 80 items, every stage, several shards of anchors."""

from __future__ import annotations

from pathlib import Path

from prerank.recipe import Recipe, parse_recipe
from prerank.store import MANIFEST, read_manifest

SMALL = """
name = "small"
seeds = [0]
[prepare.world]
n_users = 60
n_items = 80
[encode]
embedding_dim = 8
[tokenize]
codebook_size = 4
n_levels = 2
[finetune]
hidden_size = 16
n_layers = 1
n_heads = 2
epochs = 2
[generate]
n_anchors = 4
beam_width = 8
shard_users = 10
[train]
epochs = 1
[evaluate]
n_resamples = 10
[methods.kd]
teacher = "ranker"
label.source = "teacher"
[methods.gpl]
anchors = "llm"
[methods.gpl-history]
anchors = "history"
"""


def small_recipe(out: Path) -> Recipe:
    import tomllib

    return parse_recipe({**tomllib.loads(SMALL), "out": str(out)})


def fingerprints(folder: Path) -> dict[str, str]:
    """Return key -> fingerprint of every finished artifact of a run."""
    found = {
        str(file.parent.relative_to(folder)): read_manifest(file.parent)
        for file in folder.rglob(MANIFEST)
        if ".work" not in file.parts
    }
    return {key: manifest.fingerprint for key, manifest in found.items() if manifest}


def hashes(folder: Path) -> dict[str, str]:
    """Return file -> sha256 of all that no clock decides, as the manifests name it."""
    clocked = ("report.html", "report.json", "pre_ranker.json")
    return {
        f"{key}/{name}": digest
        for key in fingerprints(folder)
        for name, digest in dict(read_manifest(folder / key).files).items()  # type: ignore[union-attr]
        if name not in clocked
    }
