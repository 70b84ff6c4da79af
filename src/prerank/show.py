"""Describe stored artifacts: manifest, sizes, and what matters about each kind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from prerank.artifacts import Dataset, PseudoLabels
from prerank.errors import ArtifactError
from prerank.evaluation.audit import audit
from prerank.evaluation.extra import AuditExtra
from prerank.evaluation.formats import to_rich
from prerank.evaluation.sheets import label_audit_sheets
from prerank.progress import shown
from prerank.store import MANIFEST, Manifest, load, read_manifest, verify

ABOUT = (
    "dataset.json",
    "quality.json",
    "finetune.json",
    "anchors.json",
    "labels.json",
    "pre_ranker.json",
)
"""The small JSON files beside the arrays; each says what matters about its artifact."""


def describe_folder(path: Path) -> dict[str, Any]:
    """Return what lies in an artifact's folder, or in every artifact folder of a run.

    Raises:
        ArtifactError: there is no finished artifact, or one of its files is damaged.
    """
    manifest = read_manifest(path)
    if manifest is not None:
        verify(path, manifest)
        return _describe(path, manifest)
    found = sorted(p.parent for p in path.rglob(MANIFEST) if ".work" not in p.parts)
    if not found:
        raise ArtifactError(
            "no artifact here",
            where=str(path),
            must=f"a folder with {MANIFEST}, or a run's folder",
            hint="`prerank run RECIPE` prints where its artifacts lie",
        )
    manifests = {folder: read_manifest(folder) for folder in found}
    return {
        "run": str(path),
        "artifacts": [
            {
                "key": str(folder.relative_to(path)),
                "stage": m.kind,
                "fingerprint": m.fingerprint,
                "seconds": m.seconds,
                "created": m.created,
            }
            for folder, m in manifests.items()
            if m is not None
        ],
    }


def drift_of_folders(before: Path, after: Path) -> dict[str, Any]:
    """Return the drift report of two ``semantic_ids`` folders.

    New items' residuals need the embeddings beside ``after``; without them they are None.

    Raises:
        ArtifactError: a folder holds no finished, undamaged semantic IDs.
    """
    from prerank.artifacts import ItemEmbeddings, SemanticIds
    from prerank.semantic_ids.drift import drift
    from prerank.store import Store, load

    then, now = (load(Store(p.parent).checked(p.name), SemanticIds) for p in (before, after))
    beside = Store(after.parent)
    manifest = beside.manifest(after.name)
    parents = dict(manifest.parents) if manifest else {}
    space = next((key for key in parents if key.startswith("embeddings")), None)
    known = space is not None and beside.has(space, parents[space])
    vectors = load(beside.checked(str(space)), ItemEmbeddings) if known else None
    return drift(then, now, vectors)


def _describe(path: Path, manifest: Manifest) -> dict[str, Any]:
    about = {
        name: json.loads((path / name).read_text()) for name in ABOUT if (path / name).exists()
    }
    audited = _audit(path, manifest) if manifest.kind == "label" else None
    if audited is not None:
        about["audit"] = audited
    return {
        "artifact": str(path),
        "stage": manifest.kind,
        "fingerprint": manifest.fingerprint,
        "seed": manifest.seed,
        "created": manifest.created,
        "seconds": manifest.seconds,
        "parents": dict(manifest.parents),
        "config": dict(manifest.config),
        "files": {name: (path / name).stat().st_size for name in manifest.files},
        "packages": dict(manifest.packages),
        **about,
    }


def _audit(path: Path, manifest: Manifest) -> AuditExtra | None:
    """Hold the pseudo-labels in ``path`` against the truth that the run's dataset knows, if any."""
    mark = manifest.parents.get("dataset")
    for folder in path.resolve().parents:
        found = read_manifest(folder / "dataset") if mark else None
        if found is not None and found.fingerprint == mark:
            dataset: Dataset = load(folder / "dataset", Dataset)
            labels: PseudoLabels = load(path, PseudoLabels)
            return audit(labels, dataset, manifest.seed or 0)
    return None


def print_description(description: Mapping[str, Any]) -> None:
    """Print `describe_folder`'s findings as tables."""
    console = Console()
    if "artifacts" in description:
        table = Table("artifact", "stage", "fingerprint", "seconds", "created", box=None)
        for row in description["artifacts"]:
            words = (row["key"], row["stage"], row["fingerprint"], f"{row['seconds']:.1f}")
            table.add_row(*map(shown, words), shown(row["created"]))
        console.print(table)
        return
    table = Table("what", "value", box=None)
    audited: Any = description.get("audit")
    plain = {name: value for name, value in description.items() if name != "audit"}
    for name, value in _flat(plain):
        table.add_row(shown(name), shown(value))
    console.print(table)
    if audited is not None:
        console.print()
        for sheet in label_audit_sheets("these labels", audited):
            console.print(to_rich(sheet))
            console.print()


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of equal keys as one table; of a longer text, its first line."""
    table = Table(*rows[0], box=None)
    for row in rows:
        table.add_row(*(shown(str(value).partition("\n")[0]) for value in row.values()))
    Console().print(table)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            value = {str(number): inner for number, inner in enumerate(value)}
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{prefix}{key}.")
        else:
            text = json.dumps(value) if isinstance(value, list | tuple) else str(value)
            rows.append((f"{prefix}{key}", text if len(text) < 200 else text[:197] + "..."))
    return rows
