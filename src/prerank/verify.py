"""Hold a run against what it claims: hash every file, and do a sample of the work once more.

Nothing of the run is written. What is looked at, artifact by artifact:

- the manifest can be read, and its fingerprint follows from kind, config, seed and parents;
- every file is there with its hash, no other file, and none outside the folder;
- the parents are those that the run holds now (if not, the artifact is stale: no damage);
- it can be loaded, which checks all that must hold of it (`prerank.artifacts`);
- replay: anchors of some users are decoded again, labels of some users are matched again, some
  pairs are scored again; controls without a model are made again in full. With ``full`` every
  stage runs again in a temporary folder, and its files must be the same bytes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import load_file

from prerank import seeds
from prerank import store as stores
from prerank.anchors.config import DECODED
from prerank.artifacts import (
    Dataset,
    InterestAnchors,
    ItemEmbeddings,
    PseudoLabels,
    Report,
    SemanticIds,
    places_of,
)
from prerank.errors import ArtifactError, ConfigError, PrerankError
from prerank.labels.config import LabelConfig
from prerank.labels.matching import Pooling, match_pairs
from prerank.lock import WORK
from prerank.pipeline import SCORED, VERBS, Run, make_anchors
from prerank.plan import Step, plan
from prerank.progress import track
from prerank.recipe import AT, STAGES, Recipe, load_recipe
from prerank.store import MANIFEST, Manifest, Store

TOLERANCE = 1e-4
"""How far numbers may lie apart: another machine adds in another order."""
KINDS: Mapping[str, type[Any]] = {
    "prepare": Dataset,
    "encode": ItemEmbeddings,
    "tokenize": SemanticIds,
    "generate": InterestAnchors,
    "label": PseudoLabels,
    "evaluate": Report,
}
CLOCKED: Mapping[str, set[str]] = {
    "report.json": {"costs", "stages"},
    "pre_ranker.json": {"rows_per_second"},
}
"""Keys of JSON files whose values a clock measured: no two runs agree on them."""
ALONE = ("dataset", "embeddings", "semantic_ids", "anchor_model", "report")
"""Artifacts of a run that lie in no folder of their kind, variants' apart."""
UNLIKE = ("report.html",)
"""Files that show such values."""

State = Literal["sound", "stale", "differs", "damaged"]


@dataclass(frozen=True)
class Finding:
    """What is known of one artifact.

    Attributes:
        key: where it lies in the run.
        stage: the verb that made it, empty if the manifest does not say.
        state: ``damaged`` must not be used; ``differs``: whole, but the work done again gives
            something else; ``stale``: whole, but the run holds other parents now.
        bytes: hashed.
        replayed: what was done again, and how near it came; empty if nothing was.
        problem: what is wrong; empty if nothing is.
    """

    key: str
    stage: str
    state: State
    bytes: int
    replayed: str
    problem: str = ""


class DiffersError(ArtifactError):
    """Work done again gave something else than the artifact holds."""


@dataclass(frozen=True)
class _Elsewhere(Store):
    """A run's store whose parts of artifacts to come lie in a temporary folder."""

    scratch: Path

    def work(self, key: str, fingerprint: str) -> Path:
        path = self.scratch / f"{key.replace('/', '-')}-{fingerprint}"
        path.mkdir(parents=True, exist_ok=True)
        return path


def verify(folder: Path, n_users: int = 64, *, full: bool = False) -> list[Finding]:
    """Return one finding an artifact of the run in ``folder``, in the order of the stages.

    Args:
        n_users: users whose anchors are decoded again; 0: replay nothing.
        full: run every stage again, and compare bytes.

    Raises:
        ConfigError: there is no run.
    """
    keys = sorted(
        str(file.parent.relative_to(folder))
        for file in folder.rglob(MANIFEST)
        if WORK not in file.relative_to(folder).parts
    )
    if not keys or not (folder / "recipe.toml").is_file():
        raise ConfigError(
            "no run here",
            where=str(folder),
            must="the folder of a run, with its recipe.toml and artifacts",
            hint="`prerank run RECIPE` makes one under its `out` and `name`",
        )
    with tempfile.TemporaryDirectory() as scratch:
        store = _Elsewhere(folder, Path(scratch))
        manifests, broken = _read_manifests(store, keys)
        recipe = load_recipe(folder / "recipe.toml")
        keys = _in_order(recipe, manifests)
        run = Run(recipe, [_step(key, manifests[key]) for key in keys], store)
        return broken + [
            _examine(run, key, manifests, n_users, full) for key in track(keys, "verify")
        ]


def _in_order(recipe: Recipe, manifests: Mapping[str, Manifest]) -> list[str]:
    """Return the keys stage by stage, as in the plan where the logs to plan with are there."""
    try:
        planned = [step.key for step in plan(recipe)]
    except PrerankError:
        planned = []
    place = {key: number for number, key in enumerate(planned)}
    stage = {name: number for number, name in enumerate(STAGES)}

    def order(key: str) -> tuple[int, int, str]:
        return stage.get(manifests[key].kind, len(stage)), place.get(key, len(place)), key

    return sorted(manifests, key=order)


def _read_manifests(store: Store, keys: list[str]) -> tuple[dict[str, Manifest], list[Finding]]:
    read: dict[str, Manifest] = {}
    broken: list[Finding] = []
    for key in keys:
        try:
            manifest = store.manifest(key)
        except ArtifactError as error:
            broken.append(Finding(key, "", "damaged", 0, "", str(error)))
        else:
            if manifest is not None:
                read[key] = manifest
    return read, broken


def _step(key: str, manifest: Manifest) -> Step:
    seed = manifest.seed or 0
    return Step(manifest.kind, key, manifest.config, seed, manifest.parents, manifest.fingerprint)


def _examine(
    run: Run, key: str, manifests: Mapping[str, Manifest], n_users: int, full: bool
) -> Finding:
    manifest, path = manifests[key], run.store.path(key)
    size = sum((path / name).stat().st_size for name in manifest.files if (path / name).is_file())
    about = (key, manifest.kind)
    try:
        stores.verify(path, manifest)
        _check_fingerprint(path, manifest)
        if manifest.kind in KINDS:
            stores.load(path, KINDS[manifest.kind])
    except (PrerankError, OSError, ValueError, KeyError) as error:
        return Finding(*about, "damaged", size, "", str(error))
    other = _other_parents(manifest, manifests)
    if other:
        return Finding(*about, "stale", size, "", f"made from another {', '.join(other)}")
    try:
        step = run.steps[key]
        replayed = _again(run, step) if full else _replay(run, step, n_users) if n_users else ""
    except DiffersError as error:
        return Finding(*about, "differs", size, "", str(error))
    except PrerankError as error:  # a parent is damaged, the logs are gone, no such device here
        return Finding(*about, "sound", size, f"could not be: {error.what}")
    return Finding(*about, "sound", size, replayed)


def _check_fingerprint(path: Path, manifest: Manifest) -> None:
    decided = (manifest.kind, manifest.config, manifest.seed, manifest.parents)
    wanted = stores.fingerprint(*decided, manifest.revision)
    if manifest.fingerprint != wanted:
        raise ArtifactError(
            "the manifest is damaged",
            where=str(path / MANIFEST),
            must=f"fingerprint {wanted}, as its config, seed and parents give",
            got=manifest.fingerprint,
            hint=stores.MAKE_AGAIN,
        )


def _other_parents(manifest: Manifest, manifests: Mapping[str, Manifest]) -> list[str]:
    """Return the parents of this run that are not, or no longer, what the artifact was made from.

    Folders of other runs, plug-ins and files are left out: they are no artifacts, or have moved.
    """
    return [
        key
        for key, mark in manifest.parents.items()
        if (key in manifests and manifests[key].fingerprint != mark)
        or (key not in manifests and key.partition(AT)[0] in ALONE)
    ]


# ---- replay ----------------------------------------------------------------------------------


def _again(run: Run, step: Step) -> str:
    """Run the step's stage in a temporary folder; the files must be the same bytes."""
    if step.stage not in VERBS:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        out, old = Path(folder), run.store.path(step.key)
        VERBS[step.stage](run, step, out)
        new = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
        named = {str(p.relative_to(old)) for p in old.rglob("*") if p.is_file()} - {MANIFEST}
        compared = sorted((new | named) - set(UNLIKE))
        for name in compared:
            if name not in new & named or _content(out / name) != _content(old / name):
                raise DiffersError(
                    "the stage, run again, wrote other bytes",
                    where=str(old / name),
                    hint="equal bytes need the same machine, packages and number of threads",
                )
    return f"all of it, {len(compared)} files equal"


def _content(file: Path) -> object:
    """Return a file's bytes; of some JSON files, all but what a clock measured."""
    if file.name not in CLOCKED:
        return file.read_bytes()
    return _without(json.loads(file.read_text()), CLOCKED[file.name])


def _without(value: Any, keys: set[str]) -> Any:
    if isinstance(value, dict):
        return {k: _without(inner, keys) for k, inner in value.items() if k not in keys}
    return [_without(inner, keys) for inner in value] if isinstance(value, list) else value


def _replay(run: Run, step: Step, n_users: int) -> str:
    for name, replay in _REPLAYS.items():
        if step.stage == name:
            return replay(run, step, n_users)
    return ""


def _replay_anchors(run: Run, step: Step, n_users: int) -> str:
    stored: InterestAnchors = run.load(step.key, InterestAnchors)
    if step.config.get("source") not in DECODED or "first" in step.config:
        again = make_anchors(run, step)
        users = np.arange(again.n_users)
    else:
        users, again = _decoded(run, step, n_users)
    same_count = np.diff(stored.offsets)[users] == np.diff(again.offsets)
    if not same_count.all():
        raise _differs(step, f"user {users[~same_count][0]} has another number of anchors")
    rows, _ = places_of(stored.offsets, users)
    same = (stored.codes[rows] == again.codes).all(axis=1)
    far = float(np.abs(stored.logprob[rows] - again.logprob).max(initial=0))
    if not same.all() or far > TOLERANCE:
        raise _differs(step, f"{(~same).sum()} of {len(rows)} anchors, log-probabilities {far:.1e}")
    return f"{len(users)} users, {len(rows)} anchors within {far:.0e}"


def _decoded(run: Run, step: Step, n_users: int) -> tuple[Any, InterestAnchors]:
    from prerank.anchors.config import GenerateConfig
    from prerank.anchors.generate import decode_some

    settings = {name: value for name, value in step.config.items() if name != "source"}
    return decode_some(
        run.dataset,
        run.semantic_ids(step),
        run.embeddings(step),
        run.path(run.parents(step, "finetune")[0]),
        GenerateConfig.parse(settings),
        step.seed,
        n_users,
        step.config["source"],
    )


def _replay_labels(run: Run, step: Step, n_users: int) -> str:
    stored: PseudoLabels = run.load(step.key, PseudoLabels)
    anchors = run.anchors(step)
    if anchors is None:
        return ""
    config = LabelConfig.parse(step.config)
    users = np.unique(stored.user)
    chosen = seeds.rng(step.seed, "label", "replay").permutation(users)[:n_users]
    rows = np.isin(stored.user, chosen) & ~np.isnan(stored.relevance)
    pooling = Pooling.of(config)
    again = match_pairs(
        stored.user[rows], stored.item[rows], run.embeddings(step), anchors, pooling
    )
    far = np.abs(again.relevance - stored.relevance[rows])
    if not (far <= TOLERANCE).all():
        raise _differs(step, f"relevance of {(~(far <= TOLERANCE)).sum()} of {rows.sum()} pairs")
    return f"{len(chosen)} users, {rows.sum()} matches within {far.max(initial=0):.0e}"


def _replay_scores(run: Run, step: Step, _: int) -> str:
    file = run.path(step.key) / SCORED
    if not file.is_file():
        return ""
    kept = load_file(file)
    again = run.ranker(step).score_pairs(kept["user"], kept["item"], kept["time"])
    far = float(np.abs(again - kept["logit"]).max(initial=0))
    if not far <= TOLERANCE:
        raise _differs(step, f"logits differ by {far:.1e}")
    return f"{len(np.unique(kept['user']))} users, {len(again)} logits within {far:.0e}"


_REPLAYS: Mapping[str, Callable[[Run, Step, int], str]] = {
    "generate": _replay_anchors,
    "label": _replay_labels,
    "train": _replay_scores,
    "teach": _replay_scores,
}


def _differs(step: Step, got: str) -> DiffersError:
    return DiffersError(
        "work done again gives something else",
        where=step.key,
        must=f"what {step.stage} wrote, within {TOLERANCE:.0e}",
        got=got,
        hint="another kind of device may flip near ties; else delete the folder and run again",
    )
