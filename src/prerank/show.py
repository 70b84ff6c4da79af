"""Describe stored artifacts: what each is, its sizes or metrics, its settings, where it came from.

`describe_folder` returns all of it, `print_description` what a reader looks for first; ``--all``
prints the rest.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table

from prerank.artifacts import SPLITS, UNKNOWN_CLICK, Dataset, PseudoLabels, Report
from prerank.data.config import PrepareConfig, own_section
from prerank.errors import ArtifactError
from prerank.evaluation.audit import audit
from prerank.evaluation.extra import AuditExtra
from prerank.evaluation.formats import to_rich
from prerank.evaluation.sheets import Sheet, SheetRow, label_audit_sheets
from prerank.evaluation.table import WIDE, print_table
from prerank.progress import shown
from prerank.store import (
    MAKE_AGAIN,
    MANIFEST,
    UNREADABLE,
    Manifest,
    load,
    read_manifest,
    table_files,
    verify,
)

ABOUT = (
    "dataset.json",
    "quality.json",
    "finetune.json",
    "anchors.json",
    "labels.json",
    "pre_ranker.json",
)
"""The small JSON files beside the arrays; each says what matters about its artifact."""
DATASET, REPORT = "dataset.json", "report.json"
LONGEST_LIST = 200
HEAD = ("artifact", "stage", "fingerprint", "seed", "created", "seconds")
ORIGIN = ("parents", "config", "files", "packages")


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
    if DATASET in about:
        about["sizes"] = _sizes(path, about[DATASET])
    if (path / REPORT).exists():
        about["records"] = json.loads((path / REPORT).read_text())["records"]
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


# ---- the sizes of a dataset ----------------------------------------------------------------------


def _sizes(path: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return how much a dataset's folder holds; footers and single columns of it are read.

    Raises:
        ArtifactError: a table is not as its stage wrote it.
    """
    try:
        tables = {
            name: pl.scan_parquet(table_files(path, name))
            for name in ("users", "items", "exposures", "candidates", "interactions", "pools")
        }
        rows = {name: _rows(table) for name, table in tables.items()}
        timed = about["time_unit"] == "ms"
        shown_rows, by_split = _exposures(tables["exposures"], timed)
        return {
            "users": rows["users"],
            "items": rows["items"],
            "exposures": {**shown_rows, "splits": by_split},
            "candidates": rows["candidates"],
            "interactions": rows["interactions"],
            "pools": _pools(tables["pools"], about["pools"]),
        }
    except UNREADABLE as error:
        raise ArtifactError(
            "the dataset cannot be read",
            where=str(path),
            must="the files that `prerank prepare` wrote",
            got=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200],
            hint=MAKE_AGAIN,
        ) from None


def _rows(table: pl.LazyFrame) -> int:
    return int(table.select(pl.len()).collect().item())


def _exposures(table: pl.LazyFrame, timed: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the figures of all exposures, and those of each split by name."""
    known = pl.col("click") != UNKNOWN_CLICK
    figures = [
        pl.len().alias("rows"),
        pl.col("user").n_unique().alias("users"),
        pl.col("item").n_unique().alias("items"),
        (pl.col("click") == 1).sum().alias("clicks"),
        (~known).sum().alias("unknown_clicks"),
        pl.col("time").min().alias("first"),
        pl.col("time").max().alias("last"),
    ]
    whole = table.select(figures).collect(engine="streaming")
    split = table.group_by("split").agg(figures).sort("split").collect(engine="streaming")
    by_split = {SPLITS[row.pop("split")]: row for row in split.to_dicts()}
    for row in (found := [whole.to_dicts()[0], *by_split.values()]):
        judged = row["rows"] - row["unknown_clicks"]
        row["click_rate"] = row["clicks"] / judged if judged else None
        for end in ("first", "last"):
            row[end] = _moment(row[end]) if timed else None
    return found[0], by_split


def _pools(table: pl.LazyFrame, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return the rows of each pool by split."""
    counts = table.group_by("pool", "split").len().sort("pool", "split").collect()
    found: dict[str, dict[str, int]] = {}
    for pool, split, n in counts.iter_rows():
        found.setdefault(names[pool], {})[SPLITS[split]] = n
    return found


def _moment(ms: int | None) -> str | None:
    """Return UTC milliseconds as a text to the minute."""
    if ms is None:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


# ---- printed -------------------------------------------------------------------------------------


def _console() -> Console:
    """Return a console as wide as the terminal; in a pipe or a file wide, for lines to be whole."""
    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console() if narrow else Console(width=WIDE)


def print_description(description: Mapping[str, Any], *, everything: bool = False) -> None:
    """Print `describe_folder`'s findings as tables; nothing is cut, long names are folded.

    Args:
        description: from `describe_folder`, or any nested values.
        everything: also files, packages, and settings that are the defaults or not in use.
    """
    console = _console()
    if "artifacts" in description:
        _print_run(console, description["artifacts"])
        return
    head, rest = _head(description), _rest(description, everything)
    _print_values(console, head, everything)
    if "sizes" in description:
        _print_sizes(console, description["sizes"], description[DATASET].get("notes", ()))
    if "records" in description:
        _print_report(console, Path(description["artifact"]))
    if head and rest:
        console.print()
    _print_values(console, rest, everything)
    if "audit" in description:
        for sheet in label_audit_sheets("these labels", description["audit"]):
            console.print()
            console.print(to_rich(sheet))
    if head and not everything:
        console.print(shown("\n--all prints every setting, file and package", "dim"))


def _print_run(console: Console, artifacts: Sequence[Mapping[str, Any]]) -> None:
    """Print one line an artifact; where the terminal is narrow, the longest names fold."""
    table = _table("artifact", "stage", "fingerprint", "seconds", "created")
    for row in artifacts:
        created = str(row["created"]).replace("T", " ")[:16]  # to the minute
        words = (row["key"], row["stage"], row["fingerprint"], f"{row['seconds']:.1f}", created)
        table.add_row(*map(shown, words))
    console.print(table)


def _table(*names: str) -> Table:
    """Return a table whose cells fold where they do not fit: nothing in them is cut."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(shown(name), overflow="fold")
    return table


def _print_values(console: Console, values: Mapping[str, Any], everything: bool) -> None:
    if not values:
        return
    table = _table("what", "value")
    for name, value in _flat(values, everything=everything):
        table.add_row(shown(name), shown(value))
    console.print(table)


def _print_sizes(console: Console, sizes: Mapping[str, Any], notes: Sequence[str]) -> None:
    for sheet in _size_sheets(sizes):
        console.print()
        console.print(to_rich(sheet))
    if notes:
        console.print(shown("\nnotes", "bold"))
    for note in notes:
        console.print(shown(f"- {note}"))


def _print_report(console: Console, path: Path) -> None:
    report: Report = load(path, Report)
    console.print()
    print_table(report)
    console.print(shown(f"\nreport: {path / 'report.html'}"))


def _head(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an artifact is, and the sizes of a dataset that are one number each."""
    found = {name: description[name] for name in HEAD if name in description}
    if "sizes" in description:
        found |= _size_rows(description["sizes"], description[DATASET])
    return found


def _rest(description: Mapping[str, Any], everything: bool) -> dict[str, Any]:
    """Return what matters about the kind, then parents and settings.

    With ``everything`` files and packages, too, and what other parts of the page have in short.
    """
    printed = {*HEAD, *ORIGIN, "audit", "records", "sizes"}
    found = {name: value for name, value in description.items() if name not in printed}
    origin = {name: description[name] for name in ORIGIN if description.get(name)}
    if everything or not origin:
        return {**found, **origin}
    for name in ("files", "packages"):
        origin.pop(name, None)
    if "sizes" in description:
        del found[DATASET]
    if "sizes" in description and "config" in origin:
        origin["config"] = _changed_settings(origin["config"])
    if "records" in description:
        origin["parents"] = f"{len(description['parents'])} artifacts"
    return {**found, **origin}


def _changed_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what differs from the defaults of ``prepare``, without sections of other sources."""
    defaults = PrepareConfig().model_dump(mode="json")
    source = str(config.get("source"))
    own = {"split", "pools", own_section(source)}
    sections = {name for name, value in defaults.items() if isinstance(value, Mapping)}
    read = {name: value for name, value in config.items() if name not in sections - own}
    return {"source": source, **_differences(read, defaults)}


def _differences(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of ``values`` whose value is not that of ``defaults``, section by section."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        usual = defaults.get(name)
        if isinstance(value, Mapping) and isinstance(usual, Mapping):
            value = _differences(value, usual)
            if value:
                found[name] = value
        elif value != usual:
            found[name] = value
    return found


def _size_rows(sizes: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes that are one number each, as text by name."""
    untimed = {"order": "none, but each user's rows have an order"}.get(about["time_unit"], "none")
    first, last = sizes["exposures"]["first"], sizes["exposures"]["last"]
    span = f"{first} to {last} UTC" if first else untimed
    cuts = {
        f"cuts.{name}": f"{_moment(moment)} UTC"
        for name, moment in about["cuts"].items()
        if moment is not None and about["time_unit"] == "ms"
    }
    return {
        "name": about["name"],
        "users": f"{sizes['users']:,}",
        "items": f"{sizes['items']:,}",
        "candidates": f"{sizes['candidates']:,} rows",
        "interactions": f"{sizes['interactions']:,} rows",
        "time": span,
        **cuts,
    }


def _size_sheets(sizes: Mapping[str, Any]) -> list[Sheet]:
    """Return the exposures by split, and the rows of the pools."""
    exposures = sizes["exposures"]
    unknown, timed = exposures["unknown_clicks"] > 0, exposures["first"] is not None
    header = ["exposures", "rows", "users", "items", "clicks", "click rate"]
    header += ["click unknown"] if unknown else []
    header += ["first", "last"] if timed else []
    rows = {"all": exposures, **exposures["splits"]}
    lines = tuple(_size_row(name, row, unknown, timed) for name, row in rows.items())
    sheets = [Sheet("", tuple(header), lines)]
    if sizes["pools"]:
        held = SPLITS[1:]
        pools = [
            SheetRow(name, tuple(f"{counts.get(split, 0):,}" for split in held))
            for name, counts in sizes["pools"].items()
        ]
        sheets.append(Sheet("", ("pool, rows", *held), tuple(pools)))
    return sheets


def _size_row(name: str, row: Mapping[str, Any], unknown: bool, timed: bool) -> SheetRow:
    rate = "unknown" if row["click_rate"] is None else f"{row['click_rate']:.2%}"
    cells = [f"{row[key]:,}" for key in ("rows", "users", "items", "clicks")] + [rate]
    cells += [f"{row['unknown_clicks']:,}"] if unknown else []
    cells += [row["first"], row["last"]] if timed else []
    return SheetRow(name, tuple(cells))


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of equal keys as one table; of a longer text, its first line."""
    table = _table(*rows[0])
    for row in rows:
        table.add_row(*(shown(str(value).partition("\n")[0]) for value in row.values()))
    _console().print(table)


def _flat(
    values: Mapping[str, Any], prefix: str = "", *, everything: bool = False
) -> list[tuple[str, str]]:
    """Return nested values as rows of a dotted name and a text.

    Texts are whole; of a list that is longer than a few lines, its beginning and its length,
    unless ``everything``.
    """
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            value = {str(number): inner for number, inner in enumerate(value)}
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{prefix}{key}.", everything=everything)
        elif isinstance(value, list | tuple):
            text = json.dumps(value, ensure_ascii=False)
            if len(text) > LONGEST_LIST and not everything:
                text = f"{text[:LONGEST_LIST]}... ({len(value):,} in all)"
            rows.append((f"{prefix}{key}", text))
        else:
            rows.append((f"{prefix}{key}", str(value)))
    return rows
