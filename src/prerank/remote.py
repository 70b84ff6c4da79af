"""Runs and logs at a URI: s3://, gs://, hdfs:// and whatever else fsspec reaches.

A stage reads and writes local files only. A `RemoteStore` is a `Store` whose artifacts are also
published at a URI and fetched from there when this machine lacks them:

    URI/KEY/GENERATION/file ...     the files, under a name that no other writer uses
    URI/KEY/manifest.json           written last, one object: the manifest, and its generation
    URI/.work/KEY-FINGERPRINT/...   checkpoints and shards of a step in progress

An object store has no rename of folders. So nothing is visible until the manifest names it, a
manifest that was cut short is no JSON and counts as none, and every file is checked against its
hash when it is fetched. Of two writers the later manifest wins, with files of its own; what the
earlier one named is deleted, and a reader who was at it starts again.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from prerank.errors import ArtifactError, ConfigError, DataError, MissingExtraError, PrerankError
from prerank.lock import WORK, alone
from prerank.progress import log
from prerank.store import (
    MANIFEST,
    Manifest,
    Store,
    is_inside,
    parse_manifest,
    read_manifest,
    read_record,
    swap,
    verify,
    write_whole,
)

BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "oss")
"""Object stores: they need no folders, and making one would try to make a bucket."""
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "hdfs": "hdfs"}
MIRROR_SECONDS = 5.0
"""How long finished work may lie on this machine alone; what a lost machine can cost."""
FETCH_TRIES = 3
FETCHING, FETCHED = "fetch", ".fetched.json"
ENDS_BYTES = 1 << 20


def is_uri(path: str) -> bool:
    """Say whether ``path`` is a URI and no path of this machine."""
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path))


def local_name(uri: str) -> str:
    """Return a name for what belongs to ``uri``: readable, and its own."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", uri).strip("-.")
    return f"{readable}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"


@contextmanager
def _reaching(where: str) -> Iterator[None]:
    """Turn what a client of some storage throws into an ArtifactError.

    Every backend has errors of its own, which share no class; a missing object is told apart.
    """
    try:
        yield
    except (PrerankError, FileNotFoundError):
        raise
    except Exception as error:
        raise ArtifactError(
            "the storage cannot be used",
            where=where,
            got=f"{type(error).__name__}: {error}"[:300],
            hint="check the address, the credentials in the environment, and the network",
        ) from error


@cache
def _connect(uri: str) -> tuple[Any, str]:
    """Return the fsspec file system of ``uri`` and the path in it, without a slash at its end."""
    import fsspec

    scheme = uri.partition("://")[0]
    try:
        with _reaching(uri):
            try:
                files, path = fsspec.core.url_to_fs(uri)
            except ImportError as error:
                extra = EXTRAS.get(scheme)
                raise MissingExtraError(
                    f"no client for {scheme}:// is installed",
                    where=uri,
                    got=str(error),
                    hint=f'pip install "prerank[{extra}]"' if extra else "see fsspec's documents",
                ) from None
    except ArtifactError as error:
        if isinstance(error.__cause__, ValueError):
            raise ConfigError("this kind of URI is not known", where=uri, got=scheme) from None
        raise
    return files, path.rstrip("/")


@dataclass(frozen=True)
class Place:
    """A folder at a URI: reading and writing of whole objects, nothing else."""

    uri: str

    def __truediv__(self, name: str) -> Place:
        return Place(f"{self.uri.rstrip('/')}/{name}")

    @property
    def _files(self) -> Any:
        return _connect(self.uri)[0]

    @property
    def _path(self) -> str:
        return _connect(self.uri)[1]

    def read(self, start: int | None = None, end: int | None = None) -> bytes:
        """Return the bytes of this object, or a part; FileNotFoundError if it is not there."""
        with _reaching(self.uri):
            found: bytes = self._files.cat_file(self._path, start=start, end=end)
        return found

    def write(self, content: bytes) -> None:
        """Write this object at once."""
        with _reaching(self.uri):
            self._make_parent()
            self._files.pipe_file(self._path, content)

    def upload(self, file: Path) -> None:
        """Copy a local file to this object."""
        with _reaching(self.uri):
            self._make_parent()
            self._files.put_file(str(file), self._path)

    def download(self, file: Path) -> None:
        """Copy this object to a local file; FileNotFoundError if it is not there."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with _reaching(self.uri):
            self._files.get_file(self._path, str(file))

    def delete(self) -> None:
        """Delete this object and all below it; nothing if there is nothing."""
        with _reaching(self.uri):
            self._files.invalidate_cache()
            try:
                self._files.rm(self._path, recursive=True)
            except FileNotFoundError:
                return

    def listing(self) -> dict[str, Mapping[str, Any]]:
        """Return name below this place -> what the storage says of the object, sorted by name."""
        with _reaching(self.uri):
            self._files.invalidate_cache()
            found = self._files.find(self._path, detail=True)
        if list(found) == [self._path]:
            return {PurePosixPath(self._path).name: found[self._path]}
        names = {path.removeprefix(self._path).lstrip("/"): about for path, about in found.items()}
        for name in names:
            _require_inside(name, self.uri)
        return dict(sorted(names.items()))

    def _make_parent(self) -> None:
        if self.uri.partition("://")[0] not in BUCKETS:
            self._files.makedirs(str(PurePosixPath(self._path).parent), exist_ok=True)


def _require_inside(name: str, where: str) -> None:
    if not is_inside(name):
        raise ArtifactError("a file's name leads out of its folder", where=where, got=repr(name))


# ---- artifacts -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """What the manifest at a URI says: where the files of an artifact lie, and its manifest."""

    generation: str
    manifest: Manifest
    text: str


@dataclass(frozen=True)
class RemoteStore(Store):
    """A local folder of work, and the URI where its artifacts are published.

    An artifact counts as finished when it is published. One that was finished on this machine
    while the storage was away is published by `catch_up`.
    """

    uri: str = ""

    @property
    def place(self) -> Place:
        """Where the run is published."""
        return Place(self.uri)

    def published(self, key: str) -> Published | None:
        """Return what is published under ``key``; None if nothing whole is."""
        self.path(key)  # refuses a key that leaves the run
        try:
            values = json.loads((self.place / key / MANIFEST).read())
            generation, text = values["generation"], values["manifest"]
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None
        _require_inside(generation, f"{self.uri}/{key}")
        try:
            manifest = parse_manifest(text, f"{self.uri}/{key}/{MANIFEST}")
        except ArtifactError:
            return None
        return Published(generation, manifest, text)

    def manifest(self, key: str) -> Manifest | None:
        """Return the manifest of ``key`` here, else the published one, else None."""
        with suppress(ArtifactError):  # a damaged one counts as none: another may be published
            found = super().manifest(key)
            if found is not None:
                return found
        there = self.published(key)
        return there.manifest if there else None

    def has(self, key: str, fingerprint: str, parents: Mapping[str, str] | None = None) -> bool:
        """Say whether ``key`` is published with exactly this fingerprint and these parents."""
        there = self.published(key)
        if there is None or there.manifest.fingerprint != fingerprint:
            return False
        return parents is None or dict(there.manifest.parents) == dict(parents)

    def checked(self, key: str, fingerprint: str | None = None) -> Path:
        """Return the local folder of a finished, undamaged artifact.

        It is fetched if it is not here, or not whole.
        """
        with suppress(ArtifactError):
            if super().manifest(key) is not None:
                return super().checked(key, fingerprint)
        there = self.published(key)
        if there is not None and fingerprint in (None, there.manifest.fingerprint):
            self.fetch(key, there)
        return super().checked(key, fingerprint)

    def catch_up(self, key: str, fingerprint: str) -> None:
        """Publish an artifact that is finished here and not there."""
        if super().has(key, fingerprint) and not self.has(key, fingerprint):
            super().checked(key, fingerprint)
            self._upload(key)

    def work(self, key: str, fingerprint: str) -> Path:
        """Return the folder of work in progress, with what another machine left at the URI."""
        path = super().work(key, fingerprint)
        there = self.place / ".work" / path.name
        for name in there.listing():
            if not (path / name).exists():
                part = path / f"{name}.part"
                (there / name).download(part)
                part.replace(path / name)
        return path

    @contextmanager
    def publish(self, key: str, manifest: Manifest) -> Iterator[Path]:
        """Yield an empty folder to fill; on a clean exit it is the artifact, here and there.

        Meanwhile finished files of the folder of work are copied to the URI now and then.
        """
        name = f"{key.replace('/', '-')}-{manifest.fingerprint}"
        there = self.place / ".work" / name
        with _mirrored(self.root / ".work" / name, there), super().publish(key, manifest) as out:
            yield out
        self._upload(key)
        there.delete()

    def _upload(self, key: str) -> None:
        """Publish the local artifact ``key``: files first, the manifest last."""
        folder, before = self.path(key), self.published(key)
        manifest = read_manifest(folder)
        if manifest is None:
            raise ArtifactError("the artifact is not there", where=str(folder))
        generation = f"g-{uuid.uuid4().hex}"
        for name in manifest.files:
            (self.place / key / generation / name).upload(folder / name)
        values = {"generation": generation, "manifest": (folder / MANIFEST).read_text()}
        (self.place / key / MANIFEST).write(json.dumps(values).encode())
        if before is not None:
            (self.place / key / before.generation).delete()

    def fetch(self, key: str, there: Published) -> None:
        """Copy a published artifact here unless it is here, whole; one process at a time.

        Nothing is here before all of it is, and whole.

        Raises:
            ArtifactError: an object is missing or damaged.
        """
        with alone(self.root / WORK / FETCHING) as aside:
            if self._is_here(key, there.manifest):
                return
            if (self.path(key) / MANIFEST).exists():
                log(f"{key}: what is here is damaged, or not what is published; fetched again")
            for _ in range(FETCH_TRIES):
                newer = self._download(key, there, aside / "made")
                if newer is None:
                    return
                there = newer  # replaced while we read: the new one is whole, too
        raise ArtifactError("the artifact is replaced again and again", where=f"{self.uri}/{key}")

    def _is_here(self, key: str, wanted: Manifest) -> bool:
        folder = self.path(key)
        try:
            if read_manifest(folder) != wanted:
                return False
            verify(folder, wanted)
        except ArtifactError:
            return False
        return True

    def _download(self, key: str, there: Published, folder: Path) -> Published | None:
        """Fetch an artifact by way of ``folder``; return the one that took its place meanwhile."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            for name in there.manifest.files:
                (self.place / key / there.generation / name).download(folder / name)
        except FileNotFoundError as error:
            newer = self.published(key)
            if newer is not None and newer.generation != there.generation:
                return newer
            raise ArtifactError(
                "an object of the artifact is missing",
                where=f"{self.uri}/{key}/{there.generation}",
                got=str(error)[:200],
                hint=f"delete {self.uri}/{key}/{MANIFEST} and run the stage again",
            ) from None
        _verified(folder, there, f"{self.uri}/{key}")
        (folder / MANIFEST).write_text(there.text)
        swap(folder, self.path(key))
        return None


def _verified(folder: Path, there: Published, where: str) -> None:
    try:
        verify(folder, there.manifest)
    except ArtifactError as error:
        raise ArtifactError(
            "an object of the artifact is damaged",
            where=f"{where}/{there.generation}/{Path(error.where).name}",
            must=error.must,
            hint=f"delete {where}/{MANIFEST} and run the stage again",
        ) from None


def store_at(folder: Path, uri: str) -> Store:
    """Return the store of a run: in ``folder``, and published at ``uri`` unless that is empty."""
    return RemoteStore(folder, uri) if uri else Store(folder)


def bring(uri: str, folder: Path) -> Path:
    """Fetch what is published at ``uri``, a run or one artifact, into ``folder``; return it.

    What lies there already, whole and the same, is not fetched again.

    Raises:
        ArtifactError: nothing is published there, or an object is missing or damaged.
    """
    parent, _, own = uri.rstrip("/").rpartition("/")
    single = RemoteStore(folder, parent)
    if not parent.endswith(":/") and (there := single.published(own)) is not None:
        single.fetch(own, there)
        return folder / own
    store, found = RemoteStore(folder, uri), False
    for name in Place(uri).listing():
        path = PurePosixPath(name)
        key = str(path.parent)
        if path.name != MANIFEST or key == "." or ".work" in path.parts or _in_generation(path):
            continue
        found = True
        if (there := store.published(key)) is not None:
            store.fetch(key, there)
    if not found:
        raise ArtifactError(
            "no artifact here", where=uri, must=f"a run's URI, or one with a {MANIFEST}"
        )
    with suppress(FileNotFoundError):  # a folder of artifacts, and no run
        write_whole(
            folder / "recipe.toml", (Place(uri) / "recipe.toml").read().decode(errors="replace")
        )
    return folder


def _in_generation(path: PurePosixPath) -> bool:
    return any(re.fullmatch(r"g-[0-9a-f]{32}", part) for part in path.parts)


# ---- work in progress ------------------------------------------------------------------------


class Mirror:
    """Copies the finished files of a folder of work to a URI.

    Finished are ``.safetensors`` and ``.json`` files: stages rename them into place when they are
    whole. A JSON file may name others, so it is read before them and written after them.
    """

    def __init__(self, folder: Path, there: Place) -> None:
        self.folder, self.there = folder, there
        self._copied: dict[str, tuple[int, int]] = {}

    def sync(self) -> None:
        """Copy what is new or changed; delete what this mirror copied and is gone."""
        seen = {p.name: p for p in self.folder.glob("*") if p.suffix in (".safetensors", ".json")}
        about: dict[str, tuple[bytes, tuple[int, int]]] = {}
        for name in sorted(seen):
            if name.endswith(".json"):
                mark = _mark(seen[name])
                if mark is not None and mark != self._copied.get(name):
                    about[name] = (seen[name].read_bytes(), mark)
        for name in sorted(seen):
            mark = _mark(seen[name])
            if name.endswith(".json") or mark is None or mark == self._copied.get(name):
                continue
            try:
                (self.there / name).upload(seen[name])
            except FileNotFoundError:
                continue  # the stage needed it no longer
            self._copied[name] = mark
        for name, (content, mark) in about.items():
            (self.there / name).write(content)
            self._copied[name] = mark
        for name in [name for name in self._copied if name not in seen]:
            (self.there / name).delete()
            del self._copied[name]


def _mark(file: Path) -> tuple[int, int] | None:
    try:
        about = file.stat()
    except FileNotFoundError:
        return None
    return about.st_size, about.st_mtime_ns


@contextmanager
def _mirrored(folder: Path, there: Place) -> Iterator[None]:
    """Mirror ``folder`` from another thread, and once more if the work fails."""
    mirror, over = Mirror(folder, there), threading.Event()

    def sync() -> None:
        try:
            mirror.sync()
        except ArtifactError as error:  # the work goes on: this machine still has its files
            log(f"work in progress is not copied: {error}")

    def watch() -> None:
        while not over.wait(MIRROR_SECONDS):
            sync()

    thread = threading.Thread(target=watch, name="mirror", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        over.set()
        thread.join()
        sync()
        raise
    over.set()
    thread.join()


# ---- logs ------------------------------------------------------------------------------------


def source_files(uri: str) -> list[list[Any]]:
    """Return [name, bytes, hash] of each file below ``uri``, without fetching it.

    Hashed are both ends, and what the storage says of the version: its ETag, or its moment.
    """
    place = Place(uri)
    try:
        found = place.listing()
    except FileNotFoundError:
        found = {}
    if not found:
        raise ConfigError("the data is not there", where="prepare.path", got=uri)
    listed = []
    for name, about in found.items():
        whole = len(found) == 1 and PurePosixPath(place._path).name == name
        file, size = place if whole else place / name, int(about["size"])
        digest = hashlib.sha256(file.read(0, min(size, ENDS_BYTES)) if size else b"")
        digest.update(file.read(max(0, size - ENDS_BYTES), size) if size else b"")
        digest.update(_version(about).encode())
        listed.append([name, size, digest.hexdigest()[:16]])
    return listed


def _version(about: Mapping[str, Any]) -> str:
    """Return what tells two versions of a remote file apart that are of equal size."""
    return str(about.get("ETag") or about.get("mtime") or about.get("created"))


def fetch_folder(uri: str, folder: Path) -> Path:
    """Copy the files below ``uri`` into ``folder``; those that are there unchanged stay.

    Raises:
        DataError: there is no file.
    """
    found = Place(uri).listing()
    if not found:
        raise DataError("the data is not there", where=uri, must="a folder of files")
    with alone(folder.with_name(f".{folder.name}.{FETCHING}")):
        _fetch_files(uri, found, folder)
    return folder


def _fetch_files(uri: str, found: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / FETCHED
    known = {name: mark for name, mark in read_record(record, 2).items() if is_inside(name)}
    for name, about in found.items():
        file = folder / name
        mark = [about["size"], _version(about)]
        if known.get(name) == mark and file.is_file() and file.stat().st_size == about["size"]:
            continue
        part = file.with_name(f"{file.name}.part")
        (Place(uri) / name).download(part)
        part.replace(file)
        known[name] = mark
        write_whole(record, json.dumps(known))
    for name in [name for name in known if name not in found]:
        (folder / name).unlink(missing_ok=True)
        del known[name]
    write_whole(record, json.dumps(known))
