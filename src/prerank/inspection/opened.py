"""A run's folder, opened to look at: manifests at once, artifacts when a page first asks.

Nothing is ever written into the folder. Large tables stay on disk: labels are Parquet scanned by
Polars, anchors and embeddings mapped files of which a page reads its rows.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors import safe_open

from prerank import store as stores
from prerank.artifacts import (
    UNLABELED,
    Dataset,
    FloatArray,
    IntArray,
    ItemEmbeddings,
    PseudoLabels,
    Report,
    SemanticIds,
    TimeArray,
)
from prerank.data.unexposed import exposure_counts
from prerank.errors import ArtifactError, PrerankError
from prerank.evaluation.audit import KnownTruth
from prerank.evaluation.config import EvaluateConfig
from prerank.evaluation.explain import describe_labels
from prerank.evaluation.extra import LabelExtra, StageExtra
from prerank.evaluation.overview import catalog_map, describe_cascade
from prerank.evaluation.segments import item_segments
from prerank.evaluation.view import View, view
from prerank.inspection.asked import not_found
from prerank.inspection.tree import SidTree
from prerank.progress import log
from prerank.store import (
    ANCHOR_COLUMNS,
    MANIFEST,
    Manifest,
    Store,
    anchors_file,
    map_rows,
    table_files,
)

if TYPE_CHECKING:
    from prerank.ranking.pre_ranker import PreRanker

KEPT_RANKERS = 4
RUN_AGAIN = "`prerank run RECIPE` makes what is missing"


@dataclass(frozen=True, eq=False)
class ByUser:
    """Rows of a table by user.

    Attributes:
        offsets: (U + 1,) int64.
        order: (N,) row numbers; those of user u stand at offsets[u]:offsets[u + 1].
    """

    offsets: TimeArray
    order: NDArray[np.integer]

    @classmethod
    def of(cls, user: IntArray, n_users: int) -> ByUser:
        """Index a table by its user column."""
        order = np.argsort(user, kind="stable")
        return cls(np.searchsorted(user[order], np.arange(n_users + 1)), order)

    def rows(self, user: int) -> NDArray[np.integer]:
        """Return the rows of one user, in the table's order."""
        return self.order[self.offsets[user] : self.offsets[user + 1]]


@dataclass(frozen=True, eq=False)
class LabelTable:
    """The pseudo-labels of one method, on disk.

    Attributes:
        frame: of the file, lazily read.
        offsets: (U + 1,) int64 where the rows are sorted by user, else None.
        count: (U,) int64 rows of each user.
        about: ``source`` and ``fit``.
    """

    frame: pl.LazyFrame
    offsets: TimeArray | None
    count: TimeArray
    about: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path, n_users: int) -> LabelTable:
        """Open the table in an artifact's folder."""
        frame = pl.scan_parquet(table_files(folder, "labels"))
        user = frame.select("user").collect()["user"].to_numpy()
        is_sorted = bool((np.diff(user) >= 0).all())
        offsets = np.searchsorted(user, np.arange(n_users + 1)) if is_sorted else None
        about = json.loads((folder / "labels.json").read_text())
        return cls(frame, offsets, np.bincount(user, minlength=n_users), about)

    def of_user(self, user: int) -> pl.DataFrame:
        """Return the rows of one user."""
        if self.offsets is None:
            return self.frame.filter(pl.col("user") == user).collect()
        low, high = int(self.offsets[user]), int(self.offsets[user + 1])
        return self.frame.slice(low, high - low).collect()


@dataclass(frozen=True, eq=False)
class AnchorTable:
    """Interest anchors on disk; a page reads those of one user.

    Attributes:
        offsets: (U + 1,) int64.
        points: (P, D) float32 of all users, mapped into memory.
        source: of the anchors.
    """

    path: Path
    offsets: TimeArray
    points: FloatArray
    source: str

    @classmethod
    def open(cls, folder: Path) -> AnchorTable:
        """Open the anchors in an artifact's folder; ArtifactError if an older prerank's."""
        path = anchors_file(folder)
        with safe_open(path, framework="numpy") as file:
            offsets = file.get_tensor("offsets")
        source = json.loads((folder / "anchors.json").read_text())["source"]
        return cls(path, offsets, map_rows(path, "points"), source)

    def of_user(self, user: int) -> dict[str, NDArray[Any]]:
        """Return the columns of one user's anchors, best first, and their ``vectors``."""
        low, high = int(self.offsets[user]), int(self.offsets[user + 1])
        with safe_open(self.path, framework="numpy") as file:
            columns = {name: file.get_slice(name)[low:high] for name in ANCHOR_COLUMNS}
        return {**columns, "vectors": self.points[columns["point"]]}


class OpenedRun:
    """A run's folder.

    Attributes:
        root: the folder.
        artifacts: key -> manifest of every finished artifact.
        unreadable: method -> why its pre-ranker cannot be read, of those that were tried.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store(root)
        found: dict[str, Manifest] = {}
        for file in sorted(root.rglob(MANIFEST)) if root.is_dir() else ():
            inside = file.parent.relative_to(root)
            manifest = None if ".work" in inside.parts else stores.read_manifest(file.parent)
            if manifest is not None:
                found[inside.as_posix()] = manifest
        found.pop(".", None)
        if not found:
            raise ArtifactError(
                "no run here",
                where=str(root),
                must="the folder of a run, with finished artifacts",
                hint="`prerank run RECIPE` makes one under its `out` and `name`",
            )
        self.artifacts = found
        self._labels: dict[str, LabelTable] = {}
        self._described: dict[str, LabelExtra] = {}
        self._anchors: dict[str, AnchorTable] = {}
        self._spaces: dict[str, ItemEmbeddings] = {}
        self._rankers: dict[str, PreRanker] = {}
        self.unreadable: dict[str, str] = {}

    # ---- what the run is -------------------------------------------------------------------

    @cached_property
    def recipe(self) -> str:
        """The resolved recipe, empty if it is not there."""
        file = self.root / "recipe.toml"
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The recipe's values."""
        return tomllib.loads(self.recipe)

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.settings.get("name") or self.root.resolve().name)

    @property
    def seed(self) -> int:
        """The root seed."""
        return int(self.settings.get("seed", 0))

    @cached_property
    def stages(self) -> list[StageExtra]:
        """Every artifact: what made it, from what, how long it took."""
        return [
            {
                "stage": key,
                "verb": manifest.kind,
                "seconds": manifest.seconds,
                "fingerprint": manifest.fingerprint,
                "parents": list(manifest.parents),
                "peak_bytes": int(manifest.notes.get("peak_bytes", 0)),
            }
            for key, manifest in self.artifacts.items()
        ]

    @cached_property
    def stale(self) -> list[str]:
        """Say which artifacts were made from other parents than the run holds now."""
        return [
            f"{key} was made from another {parent}"
            for key, manifest in self.artifacts.items()
            for parent, mark in manifest.parents.items()
            if parent in self.artifacts and self.artifacts[parent].fingerprint != mark
        ]

    @cached_property
    def report(self) -> Report | None:
        """The report, None before evaluation."""
        if "report" not in self.artifacts:
            return None
        found: Report = stores.load(self.store.checked("report"), Report)
        return found

    @cached_property
    def seen(self) -> View | None:
        """The report, indexed."""
        return None if self.report is None else view(self.report)

    @property
    def extra(self) -> Mapping[str, Any]:
        """What the report's pages show besides metrics; empty before evaluation."""
        return {} if self.report is None else self.report.extra

    @property
    def config(self) -> EvaluateConfig:
        """How the run is evaluated: its main method, controls, baselines, segments."""
        if self.seen is not None:
            return self.seen.config
        return EvaluateConfig.parse(self.settings.get("evaluate", {}), where="recipe.toml")

    @cached_property
    def simulation(self) -> Mapping[str, Any] | None:
        """The result of a simulated A/B test, None if the folder holds none."""
        from prerank.simulation.simulate import KEY, load_result

        return load_result(self.store.checked(KEY)) if KEY in self.artifacts else None

    def manifest(self, key: str) -> Manifest:
        """Return the manifest of ``key``; 404 for anything that is no key of this run."""
        if key not in self.artifacts:
            raise not_found(f"this run has no artifact {key[:80]!r}", "the overview lists them all")
        return self.artifacts[key]

    def parent(self, key: str, kind: str) -> str:
        """Return the key of the artifact of ``kind`` that ``key`` was made from, or empty."""
        for parent in self.manifest(key).parents:
            if parent in self.artifacts and self.artifacts[parent].kind == kind:
                return parent
        return ""

    # ---- data ------------------------------------------------------------------------------

    def _folder(self, key: str) -> Path:
        if key not in self.artifacts:
            raise not_found(f"this run has no {key} yet", RUN_AGAIN)
        return self.store.checked(key)

    @cached_property
    def dataset(self) -> Dataset:
        """The prepared dataset."""
        found: Dataset = stores.load(self._folder("dataset"), Dataset)
        return found

    def space(self, key: str = "embeddings") -> ItemEmbeddings:
        """The frozen semantic space; a variant may have another."""
        if key not in self._spaces:
            self._spaces[key] = stores.load(self._folder(key), ItemEmbeddings)
        return self._spaces[key]

    @cached_property
    def semantic_ids(self) -> SemanticIds:
        """The items' semantic IDs."""
        found: SemanticIds = stores.load(self._folder("semantic_ids"), SemanticIds)
        return found

    @cached_property
    def tree(self) -> SidTree:
        """The semantic IDs as a tree."""
        return SidTree.of(self.semantic_ids.codes)

    @cached_property
    def exposures(self) -> TimeArray:
        """(I,) training exposures of each item."""
        return exposure_counts(self.dataset)

    @cached_property
    def segments(self) -> NDArray[np.int8]:
        """(I,) head, mid or tail."""
        config = self.config
        return item_segments(self.exposures, config.tail_below, config.head_share)

    @cached_property
    def by_exposures(self) -> NDArray[np.int64]:
        """(I,) items, the most exposed first."""
        return np.argsort(-self.exposures, kind="stable")

    @cached_property
    def titles(self) -> pl.Series:
        """(I,) lower-case titles, to search."""
        return pl.Series(self.dataset.catalog.title.tolist(), dtype=pl.String).str.to_lowercase()

    @cached_property
    def truth(self) -> KnownTruth:
        """The pairs whose true click is known."""
        return KnownTruth.of(self.dataset)

    @cached_property
    def starts(self) -> TimeArray:
        """(U + 1,) where each user's interactions start."""
        return self.dataset.interactions.offsets(len(self.dataset.users))

    @cached_property
    def user_counts(self) -> dict[str, NDArray[np.int64]]:
        """Interactions, exposures and candidates of each user, (U,) each."""
        data, n = self.dataset, len(self.dataset.users)
        return {
            "interactions": np.bincount(data.interactions.user, minlength=n),
            "exposures": np.bincount(data.exposures.user, minlength=n),
            "candidates": np.bincount(data.candidates.user, minlength=n),
        }

    @cached_property
    def pool_rows(self) -> ByUser:
        """The rows of all pools by user."""
        return ByUser.of(self.dataset.pools.user, len(self.dataset.users))

    @cached_property
    def cascade(self) -> Mapping[str, Any]:
        """Funnel and exposure bias: the report's own, or made from the data."""
        return self.extra.get("cascade") or describe_cascade(self.dataset)

    @cached_property
    def map(self) -> Mapping[str, Any]:
        """The catalogue in the plane: the report's own, or made from the artifacts."""
        data = self.dataset
        return self.extra.get("map") or catalog_map(
            self.space(), self.semantic_ids, data.items, data.catalog.title, self.seed
        )

    # ---- methods ---------------------------------------------------------------------------

    @cached_property
    def rankers(self) -> dict[str, str]:
        """Method -> key of the pre-ranker of its smallest seed."""
        found: dict[str, str] = {}
        trained = [key for key, made in self.artifacts.items() if made.kind == "train"]
        for key in sorted(trained, key=lambda key: int(key.rpartition("seed")[2] or 0)):
            found.setdefault(key.split("/")[1], key)
        order = [name for name, _ in self.seen.methods] if self.seen else sorted(found)
        known = [name for name in order if name in found]
        return {name: found[name] for name in [*known, *(n for n in found if n not in known)]}

    @cached_property
    def labelled(self) -> dict[str, str]:
        """Method -> key of its pseudo-labels; those that abstain on purpose are left out."""
        made = {name: self.parent(key, "label") for name, key in self.rankers.items()}
        if not made:
            keys = [key for key, manifest in self.artifacts.items() if manifest.kind == "label"]
            made = {key.partition("/")[2]: key for key in keys}
        plain = (UNLABELED, "none")
        return {
            name: key
            for name, key in made.items()
            if key and self.artifacts[key].config.get("source") not in plain
        }

    def choose(self, name: str, among: Mapping[str, str], *preferred: str) -> str:
        """Return ``name`` if it is known, the first preferred one if it is empty; else 404."""
        if name:
            if name not in among:
                known = ", ".join(among) or "none"
                raise not_found(f"no method {name[:80]!r} here", f"known: {known}")
            return name
        return next((one for one in (*preferred, *among) if one in among), "")

    @property
    def baseline(self) -> str:
        """The first baseline that was trained, or empty."""
        return next((name for name in self.config.baselines if name in self.rankers), "")

    def labels(self, method: str) -> LabelTable:
        """Return the pseudo-labels of a method of `labelled`."""
        key = self.labelled[method]
        if key not in self._labels:
            self._labels[key] = LabelTable.open(self._folder(key), len(self.dataset.users))
        return self._labels[key]

    def described(self, method: str) -> LabelExtra:
        """Return what the report says of a method's labels, or make it from the artifacts."""
        key = self.labelled[method]
        if key not in self._described:
            known = self.extra.get("labels", {}).get(method, {})
            if "by_confidence" not in known:
                labels: PseudoLabels = stores.load(self._folder(key), PseudoLabels)
                known = describe_labels(labels, self.dataset)
            self._described[key] = known
        return self._described[key]

    def anchors(self, method: str) -> AnchorTable | None:
        """Return the anchors behind a method's labels, None if it needs none."""
        key = self.parent(self.labelled[method], "generate") if method in self.labelled else ""
        if not key:
            return None
        if key not in self._anchors:
            self._anchors[key] = AnchorTable.open(self._folder(key))
        return self._anchors[key]

    def ranker(self, method: str) -> PreRanker:
        """Return a method's pre-ranker of the smallest seed; the latest few stay in memory."""
        from prerank.ranking.pre_ranker import PreRanker

        key = self.rankers[method]
        if key not in self._rankers:
            space = self.space(self.parent(key, "encode") or "embeddings")
            if len(self._rankers) >= KEPT_RANKERS:
                del self._rankers[next(iter(self._rankers))]
            self._rankers[key] = PreRanker.load(self._folder(key), self.dataset, space)
        return self._rankers[key]

    def can_score(self, method: str) -> bool:
        """Say whether a method's pre-ranker can be read; `unreadable` says why not."""
        if method not in self.unreadable:
            try:
                self.ranker(method)
            except PrerankError as error:
                self.unreadable[method] = error.what
                log(f"inspect: the pre-ranker of {method} is left out: {error.what}")
        return method not in self.unreadable

    def scores(
        self, method: str, user: IntArray, item: IntArray, time: TimeArray
    ) -> FloatArray | None:
        """Return the logits that a method gives pairs, (N,) float32; None if it cannot be read."""
        if not self.can_score(method):
            return None
        return self.ranker(method).score_few(user, item, time)

    def warm(self) -> None:
        """Read at start what every page needs, so that no page waits for it."""
        if "dataset" not in self.artifacts:
            return
        _ = self.titles, self.truth, self.starts, self.user_counts, self.pool_rows
        _ = self.by_exposures, self.segments, self.cascade
        if "embeddings" in self.artifacts:
            self.space()
        if "semantic_ids" in self.artifacts:
            _ = self.tree
            if "embeddings" in self.artifacts:
                _ = self.map
        main = self.choose("", self.labelled, self.config.method)
        if main:
            self.labels(main)
            self.described(main)
            self.anchors(main)
        for name in {self.choose("", self.rankers, self.config.method), self.baseline} - {""}:
            self.can_score(name)
