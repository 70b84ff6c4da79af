"""Artifact folders: data files first, manifest last, then one rename into place.

A folder without a manifest is unfinished and never read. The manifest names kind, schema, config,
seed, the parents' fingerprints, the hash of every file and the packages that wrote them.
The fingerprint is a hash of all that decides the content: equal fingerprint, nothing to redo.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from prerank import artifacts as a
from prerank.errors import (
    ArtifactError,
    PrerankError,
    SchemaError,
    StaleArtifactError,
    first_line,
    full_disk,
    is_full_disk,
)
from prerank.lock import WORK, alone
from prerank.progress import log
from prerank.vocabulary import Vocabulary

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MAKE_AGAIN = "delete the artifact's folder, then run the same command again"
NETWORK = "network."
PACKAGES = ("prerank", "numpy", "polars", "scikit-learn", "torch", "transformers")


def fingerprint(
    kind: str,
    config: Mapping[str, Any],
    seed: int | None,
    parents: Mapping[str, str],
    revision: int = 0,
) -> str:
    """Return the hash of all that decides an artifact's content.

    Args:
        kind, config, seed, parents, revision: as in `Manifest`.
    """
    decided = [kind, SCHEMA_VERSION, config, seed, dict(sorted(parents.items()))]
    decided += [revision] if revision else []
    text = json.dumps(decided, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Manifest:
    """What an artifact is and where it came from.

    Attributes:
        kind: the stage.
        fingerprint: hash of kind, config, seed, parents and revision.
        config: all settings that decide the content.
        seed: that decides the content.
        parents: key -> fingerprint of the artifacts it was made from.
        files: name -> hash of each file.
        schema: version of the format of artifacts.
        packages, python: versions of what made it.
        created: when, UTC.
        seconds: how long the making took.
        notes: facts of the making, no part of the fingerprint.
        revision: of the stage's code.
    """

    kind: str
    fingerprint: str
    config: Mapping[str, Any]
    seed: int | None
    parents: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA_VERSION
    packages: Mapping[str, str] = field(default_factory=dict)
    python: str = ""
    created: str = ""
    seconds: float = 0.0
    notes: Mapping[str, Any] = field(default_factory=dict)
    revision: int = 0


def read_manifest(path: Path) -> Manifest | None:
    """Return the manifest of the artifact folder ``path``; None if it is not finished."""
    file = path / MANIFEST
    if not file.is_file():
        return None
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _damaged_manifest(str(file), error) from None
    return parse_manifest(text, str(file))


def parse_manifest(text: str, where: str) -> Manifest:
    """Read a manifest; ArtifactError if it is damaged, SchemaError if it is of another version."""
    try:
        values = json.loads(text)
        schema = values.get("schema")
        if schema != SCHEMA_VERSION:
            raise SchemaError(
                "this prerank cannot read the artifact",
                where=where,
                must=f"schema {SCHEMA_VERSION}",
                got=schema,
                hint="run the stage again",
            )
        manifest = Manifest(**values)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged_manifest(where, error) from None
    problem = _problem(manifest)
    if problem:
        raise _damaged_manifest(where, problem)
    return manifest


def _damaged_manifest(where: str, got: object) -> ArtifactError:
    return ArtifactError("the manifest is damaged", where=where, got=got, hint=MAKE_AGAIN)


def _problem(manifest: Manifest) -> str:
    """Say what is of the wrong type or leaves the artifact's folder; empty if all is well."""
    texts = {"kind": manifest.kind, "fingerprint": manifest.fingerprint}
    for name, text in texts.items():
        if not isinstance(text, str) or not text:
            return f"{name} is no text"
    for name in ("config", "parents", "files", "packages", "notes"):
        if not isinstance(getattr(manifest, name), dict):
            return f"{name} is no object"
    for name in ("parents", "files", "packages"):
        if not all(isinstance(text, str) for text in getattr(manifest, name).values()):
            return f"{name} holds more than texts"
    if not isinstance(manifest.seed, int | None) or not isinstance(manifest.seconds, int | float):
        return "seed or seconds is no number"
    if not isinstance(manifest.revision, int):
        return "revision is no number"
    if not isinstance(manifest.created, str):
        return "created is no text"
    for name in manifest.files:
        if not is_inside(name):
            return f"file {name!r} lies outside the artifact"
    return ""


def is_inside(name: str) -> bool:
    """Say whether a relative path stays below the folder that it starts from."""
    path = PurePosixPath(name)
    odd = "\\" in name or "\0" in name or not path.parts
    return not (odd or path.is_absolute() or ".." in path.parts)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of all of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Return the installed version of each package that decides an artifact's bytes."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def verify(path: Path, manifest: Manifest) -> None:
    """Raise ArtifactError unless the folder holds the files of the manifest, and no others.

    A file that the manifest does not name was not written by the stage; it must not be read.
    """
    for name, digest in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise ArtifactError(
                "a file of the artifact is missing",
                where=str(file),
                must="there, as the manifest names it",
                hint=MAKE_AGAIN,
            )
        if not file.resolve().is_relative_to(path.resolve()):
            raise ArtifactError(
                "a file of the artifact lies outside its folder",
                where=str(file),
                must=f"inside {path}",
                got=file.resolve(),
                hint=MAKE_AGAIN,
            )
        found = hash_file(file)
        if found != digest:
            raise ArtifactError(
                "a file of the artifact is damaged",
                where=str(file),
                must=f"sha256 {digest[:12]}...",
                got=f"{found[:12]}..., {file.stat().st_size} bytes",
                hint=MAKE_AGAIN,
            )
    here = {str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir()}
    strange = sorted(name for name in here - manifest.files.keys() if _matters(name))
    if strange:
        raise ArtifactError(
            "the artifact holds a file that is not its own",
            where=str(path / strange[0]),
            must=f"only what {MANIFEST} names",
            hint="move it elsewhere",
        )


def require_whole(folder: str) -> None:
    """Raise ArtifactError if ``folder``, named in a recipe, is an artifact and damaged.

    Its manifest alone decides the fingerprints of what is made from it, so nothing else would
    notice. Empty, a hub id or any other folder will do.
    """
    manifest = read_manifest(Path(folder)) if folder else None
    if manifest is not None:
        verify(Path(folder), manifest)


def _matters(name: str) -> bool:
    """Say whether a file may be read by mistake: not the manifest, nor what systems leave."""
    return name != MANIFEST and not Path(name).name.startswith(".")


@dataclass(frozen=True)
class Store:
    """The artifacts of one run, by key (``dataset``, ``anchors/llm``, ``rankers/gpl/seed0``)."""

    root: Path

    def path(self, key: str) -> Path:
        """Return the folder of ``key``; refuse a key that leaves the root."""
        path = (self.root / key).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise ArtifactError(
                "the artifact lies outside the run", where=key, must=f"below {self.root}"
            )
        return path

    def manifest(self, key: str) -> Manifest | None:
        """Return the manifest of ``key``, None if there is no finished artifact."""
        return read_manifest(self.path(key))

    def has(self, key: str, fingerprint: str, parents: Mapping[str, str] | None = None) -> bool:
        """Say whether ``key`` is finished with exactly this fingerprint, no file of it missing.

        ``parents``: must be these, too; None: whatever they are.
        """
        try:
            found = self.manifest(key)
        except ArtifactError:
            return False
        if found is None or found.fingerprint != fingerprint:
            return False
        path = self.path(key)
        same = parents is None or dict(found.parents) == dict(parents)
        return same and all((path / name).is_file() for name in found.files)

    def checked(self, key: str, fingerprint: str | None = None) -> Path:
        """Return the folder of a finished, undamaged artifact; raise otherwise."""
        manifest = self.manifest(key)
        if manifest is None:
            raise ArtifactError(
                "the artifact is not there",
                where=str(self.path(key)),
                hint="run the stage that makes it, or `prerank run RECIPE`",
            )
        if fingerprint is not None and manifest.fingerprint != fingerprint:
            raise StaleArtifactError(
                "the artifact was made from another recipe or other parents",
                where=str(self.path(key)),
                must=f"fingerprint {fingerprint}",
                got=manifest.fingerprint,
                hint="run the stage again, or `prerank run RECIPE` for all that is stale",
            )
        verify(self.path(key), manifest)
        return self.path(key)

    def work(self, key: str, fingerprint: str) -> Path:
        """Return a folder that survives a kill, for parts of the artifact to come."""
        path = self.root / WORK / f"{key.replace('/', '-')}-{fingerprint}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def publish(self, key: str, manifest: Manifest) -> Iterator[Path]:
        """Yield an empty folder to fill; on a clean exit it becomes the artifact ``key``."""
        final = self.path(key)
        temporary = self.root / WORK / f"new-{uuid.uuid4().hex}"
        started = time.monotonic()
        try:
            with writing(final):
                temporary.mkdir(parents=True)
                yield temporary
                files = sorted(p for p in temporary.rglob("*") if p.is_file())
                readable(*files)
                named = {str(p.relative_to(temporary)): hash_file(p) for p in files}
                complete = {
                    **asdict(manifest),
                    "files": named,
                    "packages": versions(),
                    "python": platform.python_version(),
                    "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "seconds": manifest.seconds or round(time.monotonic() - started, 3),
                }
                (temporary / MANIFEST).write_text(json.dumps(complete, indent=1, default=str))
                _settle(*files, temporary / MANIFEST, temporary)
                swap(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(
            self.root / WORK / f"{key.replace('/', '-')}-{manifest.fingerprint}",
            ignore_errors=True,
        )


def readable(*files: Path) -> None:
    """Let whoever may read a file's folder read the file.

    Safetensors writes for its own user alone, and a run is often read by another one.
    """
    for file in files:
        mode = file.stat().st_mode
        wanted = mode | file.parent.stat().st_mode & 0o444
        if mode != wanted:
            file.chmod(wanted)


def _settle(*paths: Path) -> None:
    """Wait until all are on the disk: after a power cut no name comes before its bytes."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def swap(temporary: Path, final: Path) -> None:
    """Move ``temporary`` to ``final`` and delete the old folder there.

    Readers, and a kill, find the old or the new one there at any moment. Only where the system
    cannot exchange two names at once is the old one first moved away, to ``old-...`` beside
    ``temporary``.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    if not final.exists():
        temporary.replace(final)
        _settle(final.parent)
        return
    old = temporary
    if not _exchange(temporary, final):
        old = temporary.with_name(f"old-{uuid.uuid4().hex}")
        final.replace(old)
        temporary.replace(final)
    _settle(final.parent)
    shutil.rmtree(old)


HERE, EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux."""


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names by one call; False where the system or the disk has none."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    done: int = rename(HERE, os.fsencode(one), HERE, os.fsencode(other), EXCHANGE)
    return done == 0


@contextmanager
def replacing(out: Path, manifest: Manifest) -> Iterator[Path]:
    """Yield an empty folder to fill; on a clean exit it is the artifact ``out``, of no run's store.

    It is filled where no run that starts beside ``out`` clears leftovers; a second writer of
    ``out`` waits. What a killed writer left is deleted by the next one, which first puts back an
    older artifact that was moved away.
    """
    work = out.parent / WORK
    try:
        with alone(work / f"export-{out.name}") as aside:
            for left in sorted(aside.iterdir()):
                if left.name.startswith("old-") and not out.exists():
                    left.replace(out)
                shutil.rmtree(left, ignore_errors=True)
            with Store(aside).publish(out.name, manifest) as folder:
                yield folder
            swap(aside / out.name, out)
    finally:
        with suppress(OSError):  # a run's, or another writer is at work
            work.rmdir()


# ---- large arrays: written in blocks, mapped instead of read ----------------------------------

BLOCK_BYTES = 1 << 26


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Turn a full disk, met while writing ``file``, into an ArtifactError."""
    try:
        yield
    except Exception as error:  # polars, safetensors and torch have classes of their own for it
        if isinstance(error, PrerankError) or not is_full_disk(error):
            raise
        raise full_disk(str(file), first_line(error)[:200]) from None


def write_whole(file: Path, text: str) -> None:
    """Write a text file that is whole or not there, whenever the process or the power ends.

    Several processes may write it at once: the last one's text stays.
    """
    with _whole(file) as partial:
        partial.write_text(text, encoding="utf-8")
        _settle(partial)


@contextmanager
def _whole(file: Path) -> Iterator[Path]:
    """Yield a path of this process alone to write; what lies there becomes ``file`` at the end."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        with writing(file):
            yield partial
            partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def read_record(file: Path, n_values: int) -> dict[str, list[Any]]:
    """Read what this machine remembers, a JSON object of lists of ``n_values``.

    It is only there to save time: where it is cut short or odd it counts as empty.
    """
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(
        isinstance(entry, list) and len(entry) == n_values for entry in found.values()
    ):
        log(f"{file}: cannot be read, is made anew")
        return {}
    return found


def write_rows(file: Path, name: str, rows: NDArray[np.float32]) -> None:
    """Write one (N, D) float32 array as a safetensors file, a block of rows at a time.

    Raises:
        ArtifactError: the disk is full.
    """
    about = {"dtype": "F32", "shape": list(rows.shape), "data_offsets": [0, rows.size * 4]}
    head = json.dumps({name: about}).encode()
    head += b" " * (-len(head) % 8)
    step = max(1, BLOCK_BYTES // max(1, rows.shape[1] * 4))
    with writing(file), file.open("wb") as out:
        out.write(len(head).to_bytes(8, "little") + head)
        for start in range(0, len(rows), step):
            out.write(np.ascontiguousarray(rows[start : start + step], dtype="<f4").tobytes())


@dataclass(frozen=True)
class StoredArray:
    """An array of a safetensors file that is read a slice at a time; no page of it stays mapped."""

    file: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Return the rows ``start:stop``."""
        size = int(np.prod(self.shape[1:], dtype=np.int64))
        at = self.offset + start * size * self.dtype.itemsize
        flat = np.fromfile(self.file, self.dtype, (stop - start) * size, offset=at)
        return flat.reshape(stop - start, *self.shape[1:])


NUMPY_KINDS = {"F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8", "I16": "<i2", "I8": "<i1"}


def stored_arrays(file: Path) -> dict[str, StoredArray]:
    """Return the arrays of a safetensors file by name; nothing but its header is read."""
    head, start = _head(file)
    return {
        name: StoredArray(
            file,
            np.dtype(NUMPY_KINDS[about["dtype"]]),
            tuple(about["shape"]),
            start + about["data_offsets"][0],
        )
        for name, about in head.items()
        if name != "__metadata__"
    }


def map_rows(file: Path, name: str) -> NDArray[np.float32]:
    """Return an array of a safetensors file as mapped memory; writing to it changes no file."""
    head, start = _head(file)
    about = head[name]
    shape, offset = tuple(about["shape"]), start + about["data_offsets"][0]
    if about["dtype"] != "F32":
        raise ArtifactError(
            "the array has another type", where=str(file), must="F32", got=about["dtype"]
        )
    if 0 in shape:
        return np.zeros(shape, dtype=np.float32)
    return np.asarray(np.memmap(file, dtype="<f4", mode="c", offset=offset, shape=shape))


def _head(file: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file, and where its data begins."""
    size = file.stat().st_size
    with file.open("rb") as source:
        length = int.from_bytes(source.read(8), "little")
        if length > size:
            raise ArtifactError(
                "this is no safetensors file",
                where=str(file),
                must="a header shorter than the file",
                got=f"{length} bytes in a file of {size}",
                hint=MAKE_AGAIN,
            )
        return json.loads(source.read(length)), 8 + length


# ---- how each artifact is laid out in files -------------------------------------------------


def save_arrays(file: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write named arrays as one safetensors file."""
    save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, file)


# ---- parts of unfinished work: hashed too, for no manifest vouches for them -------------------


def write_part(file: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as one safetensors file that is whole or not there, with their hash in it.

    Raises:
        ArtifactError: the disk is full.
    """
    whole = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    with _whole(file) as partial:
        save_file(whole, partial, metadata={"sha256": _hash_arrays(whole)})


def read_part(file: Path) -> dict[str, NDArray[Any]] | None:
    """Return what `write_part` wrote; None if it is absent, cut short or changed by one bit."""
    try:
        with safe_open(file, framework="numpy") as opened:
            about = opened.metadata() or {}
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except UNREADABLE:
        return None
    return arrays if about.get("sha256") == _hash_arrays(arrays) else None


def _hash_arrays(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        values = arrays[name]
        digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def write_table(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write columns as one Parquet file."""
    frame = {
        name: values.tolist() if values.dtype == object else values
        for name, values in columns.items()
    }
    pl.DataFrame(frame).write_parquet(path, compression="zstd", statistics=False)


def part_file(path: Path, name: str, part: int) -> Path:
    """Return the file of one part of a table that is written in parts."""
    return path / f"{name}-{part:05d}.parquet"


def table_files(path: Path, name: str) -> list[Path]:
    """Return the files of a table in their order: one, or one a part."""
    return sorted(path.glob(f"{name}-[0-9]*.parquet")) or [path / f"{name}.parquet"]


def _read_table(path: Path | list[Path]) -> dict[str, NDArray[Any]]:
    frame = pl.read_parquet(path)
    return {name: frame[name].to_numpy(writable=True) for name in frame.columns}


def write_json(path: Path, values: object) -> None:
    """Write plain JSON values."""
    path.write_text(json.dumps(values, indent=1))


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def _write_features(path: Path, stem: str, features: a.Features) -> None:
    columns: dict[str, NDArray[Any]]
    columns = {f"c:{n}": v for n, v in features.categorical.items()}
    columns |= {f"n:{n}": v for n, v in features.numeric.items()}
    if columns:
        write_table(path / f"{stem}.parquet", columns)
    tensors: dict[str, NDArray[Any]]
    tensors = {f"v:{n}": np.ascontiguousarray(v) for n, v in features.vectors.items()}
    for name, lists in features.lists.items():
        tensors |= {f"o:{name}": lists.offsets, f"l:{name}": np.ascontiguousarray(lists.codes)}
    if tensors:
        save_file(tensors, path / f"{stem}.safetensors")
    about = {
        "n_rows": features.n_rows,
        "categories": {name: list(values) for name, values in features.categories.items()},
        "ordered": [name for name, lists in features.lists.items() if lists.ordered],
    }
    write_json(path / f"{stem}.json", about)


def _read_features(path: Path, stem: str) -> a.Features:
    about = _read_json(path / f"{stem}.json")
    file, tensor_file = path / f"{stem}.parquet", path / f"{stem}.safetensors"
    columns = _read_table(file) if file.exists() else {}
    tensors = load_file(tensor_file) if tensor_file.exists() else {}
    ordered = about.get("ordered", ())
    return a.Features(
        n_rows=about["n_rows"],
        categorical={n[2:]: v for n, v in columns.items() if n.startswith("c:")},
        categories={n: tuple(v) for n, v in about["categories"].items()},
        numeric={n[2:]: v for n, v in columns.items() if n.startswith("n:")},
        lists={
            n[2:]: a.CodeLists(v, tensors[f"l:{n[2:]}"], n[2:] in ordered)
            for n, v in sorted(tensors.items())
            if n.startswith("o:")
        },
        vectors={n[2:]: v for n, v in sorted(tensors.items()) if n.startswith("v:")},
    )


TABLES = ("exposures", "candidates", "interactions", "pools")


def _save_dataset(path: Path, dataset: a.Dataset) -> None:
    save_but_tables(path, dataset)
    for name in TABLES:
        write_table(path / f"{name}.parquet", getattr(dataset, name).columns())


def save_but_tables(path: Path, dataset: a.Dataset, parts: NDArray[np.int64] | None = None) -> None:
    """Write all of a dataset but its tables of events, which are written in ``parts``.

    Args:
        path: the artifact's folder.
        dataset: the tables in it are not read.
        parts: (P + 1,) first user of each part, and the number of users; None: no parts.
    """
    write_table(path / "users.parquet", {"id": dataset.users.ids.astype(object)})
    catalog = dataset.catalog
    named = {
        "id": dataset.items.ids.astype(object),
        "title": catalog.title,
        "text": catalog.text,
    }
    if catalog.image is not None:
        named["image"] = catalog.image
    write_table(path / "items.parquet", named)
    if catalog.vectors is not None:
        save_file({"vectors": catalog.vectors}, path / "vectors.safetensors")
    _write_features(path, "user_features", dataset.user_features)
    _write_features(path, "item_features", catalog.features)
    about = {
        "name": dataset.name,
        "time_unit": dataset.time_unit,
        "cuts": asdict(dataset.cuts),
        "notes": dataset.notes,
        "stages": dataset.candidates.stages,
        "pools": dataset.pools.pools,
    }
    if parts is not None:
        about["parts"] = parts.tolist()
    write_json(path / "dataset.json", about)


def load_catalog(path: Path) -> tuple[Vocabulary, a.Catalog]:
    """Return the items and their content, of a dataset's folder."""
    items = _read_table(path / "items.parquet")
    vectors = path / "vectors.safetensors"
    catalog = a.Catalog(
        title=items["title"],
        text=items["text"],
        features=_read_features(path, "item_features"),
        vectors=load_file(vectors)["vectors"] if vectors.exists() else None,
        image=items.get("image"),
    )
    return Vocabulary(items["id"].astype(np.str_)), catalog


def _load_dataset(path: Path) -> a.Dataset:
    about = _read_json(path / "dataset.json")
    users = _read_table(path / "users.parquet")["id"].astype(np.str_)
    items, catalog = load_catalog(path)
    tables = {name: _read_table(table_files(path, name)) for name in TABLES}
    return a.Dataset(
        name=about["name"],
        time_unit=about["time_unit"],
        users=Vocabulary(users),
        items=items,
        user_features=_read_features(path, "user_features"),
        catalog=catalog,
        exposures=a.Exposures(**tables["exposures"]),
        candidates=a.Candidates(**tables["candidates"], stages=tuple(about["stages"])),
        interactions=a.Interactions(**tables["interactions"]),
        pools=a.Pools(**tables["pools"], pools=tuple(about["pools"])),
        cuts=a.Cuts(**about["cuts"]),
        notes=tuple(about["notes"]),
    )


def _save_embeddings(path: Path, embeddings: a.ItemEmbeddings) -> None:
    write_rows(path / "vectors.safetensors", "vectors", embeddings.vectors)
    write_json(path / "quality.json", embeddings.quality)


def _load_embeddings(path: Path) -> a.ItemEmbeddings:
    about = path / "quality.json"
    vectors = map_rows(path / "vectors.safetensors", "vectors")
    return a.ItemEmbeddings(vectors, quality=_read_json(about) if about.exists() else {})


def _save_semantic_ids(path: Path, ids: a.SemanticIds) -> None:
    tensors = {
        "codes": ids.codes,
        "codebook_sizes": ids.codebook_sizes,
        "codebooks": ids.codebooks,
        **{f"{NETWORK}{name}": weights for name, weights in ids.network.items()},
    }
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path / "sids.safetensors")
    if ids.items is not None:
        write_table(path / "items.parquet", {"id": ids.items.ids.astype(object)})
    write_json(path / "quality.json", ids.quality)


def _load_semantic_ids(path: Path) -> a.SemanticIds:
    tensors = load_file(path / "sids.safetensors")
    network = {name: tensors.pop(name) for name in list(tensors) if name.startswith(NETWORK)}
    items = path / "items.parquet"
    return a.SemanticIds(
        **tensors,
        quality=_read_json(path / "quality.json"),
        network={name.removeprefix(NETWORK): weights for name, weights in network.items()},
        items=Vocabulary(_read_table(items)["id"].astype(np.str_)) if items.exists() else None,
    )


ANCHOR_COLUMNS = ("codes", "point", "logprob", "logprob_legal")
"""Arrays of `InterestAnchors` with a row an anchor."""


def anchors_file(path: Path) -> Path:
    """Return the file of anchors in an artifact's folder.

    Raises:
        ArtifactError: an older prerank wrote it.
    """
    file = path / "anchors.safetensors"
    if "vectors" in _head(file)[0]:
        raise ArtifactError(
            "an older prerank stored these anchors",
            where=str(file),
            must="points that anchors share",
            got="a vector of each anchor's own",
            hint="`prerank run RECIPE` makes them anew, and what follows from them",
        )
    return file


def _save_anchors(path: Path, anchors: a.InterestAnchors) -> None:
    names = ("offsets", *ANCHOR_COLUMNS, "points")
    tensors = {name: np.ascontiguousarray(getattr(anchors, name)) for name in names}
    save_file(tensors, path / "anchors.safetensors", metadata={"source": anchors.source})
    write_json(path / "anchors.json", {"source": anchors.source})


def _load_anchors(path: Path) -> a.InterestAnchors:
    source = _read_json(path / "anchors.json")["source"]
    with safe_open(anchors_file(path), framework="numpy") as file:
        columns = {name: file.get_tensor(name) for name in ("offsets", *ANCHOR_COLUMNS)}
    points = map_rows(path / "anchors.safetensors", "points")
    return a.InterestAnchors(**columns, points=points, source=source)


def _save_labels(path: Path, labels: a.PseudoLabels) -> None:
    write_table(path / "labels.parquet", labels.columns())
    write_json(path / "labels.json", {"source": labels.source, "fit": labels.fit})


def _load_labels(path: Path) -> a.PseudoLabels:
    about = _read_json(path / "labels.json")
    columns: dict[str, Any] = _read_table(table_files(path, "labels"))
    return a.PseudoLabels(**columns, source=about["source"], fit=about["fit"])


def _save_report(path: Path, report: a.Report) -> None:
    write_json(path / "report.json", asdict(report))


def _load_report(path: Path) -> a.Report:
    return read_report(path / "report.json")


def read_report(path: Path) -> a.Report:
    """Read a report's JSON file; other keys than its own are left out."""
    values = _read_json(path)
    return a.Report(
        records=tuple(a.Record(**r) for r in values["records"]),
        differences=tuple(a.Record(**r) for r in values["differences"]),
        extra=values["extra"],
    )


UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
    SafetensorError,
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
)
"""What files of the wrong content raise: JSON, safetensors, Parquet, missing columns and keys."""

CODECS: dict[type, tuple[Callable[[Path, Any], None], Callable[[Path], Any]]] = {
    a.Dataset: (_save_dataset, _load_dataset),
    a.ItemEmbeddings: (_save_embeddings, _load_embeddings),
    a.SemanticIds: (_save_semantic_ids, _load_semantic_ids),
    a.InterestAnchors: (_save_anchors, _load_anchors),
    a.PseudoLabels: (_save_labels, _load_labels),
    a.Report: (_save_report, _load_report),
}


def save(path: Path, artifact: object) -> None:
    """Write the files of ``artifact`` into the folder ``path`` (no manifest)."""
    CODECS[type(artifact)][0](path, artifact)


def load(path: str | Path, kind: type[Any]) -> Any:
    """Read the artifact of class ``kind`` from the folder ``path``.

    Raises:
        DataError: what is read breaks a promise of its kind.
        ArtifactError: it cannot be read at all.
    """
    path = Path(path)
    try:
        return CODECS[kind][1](path)
    except PrerankError:
        raise
    except UNREADABLE as error:
        raise ArtifactError(
            f"the {kind.__name__} cannot be read",
            where=str(path),
            must="the files that its stage wrote",
            got=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200],
            hint=MAKE_AGAIN,
        ) from None
