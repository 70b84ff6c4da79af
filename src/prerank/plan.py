"""The plan: a recipe as steps, each of which makes one artifact.

A step's fingerprint is a hash of its config, its seed, its parents' fingerprints and the revision
of its stage, so what must be redone is known before anything starts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prerank import plugins
from prerank import store as stores
from prerank.anchors.config import DECODED
from prerank.artifacts import UNLABELED
from prerank.config import Config
from prerank.data.config import own_section
from prerank.errors import ConfigError, PrerankError
from prerank.recipe import AT, STAGES, Recipe
from prerank.remote import is_uri, store_at
from prerank.sources import source_files

PAIR_KEYS = {"pairs", "proposed_per_user", "proposal_power", "max_pairs"}
"""Keys of [label] that choose unexposed pairs."""
REVISIONS: Mapping[str, int] = {
    "prepare": 2,
    "generate": 3,
    "teach": 4,
    "label": 6,
    "train": 4,
    "evaluate": 2,
    "simulate": 2,
}
"""How often a stage's code has changed what it makes of equal settings; 0 where it is not named.

A mended mistake, or another algorithm, raises it: what an older prerank made is then made anew.
"""
READERS: Mapping[str, int] = {"games": 2, "mind": 1, "movielens": 2, "recbole": 2}
"""The same for what `prepare` makes of one source."""
LOGGED = ("split", "pools", "files", "reader")
"""Settings of `prepare` that count for every source but the world."""


@dataclass(frozen=True)
class Step:
    """One artifact to make.

    Attributes:
        stage: the verb.
        key: where the artifact lies in the store.
        config: all settings that decide its content, plain JSON values.
        seed: the seed that decides its content.
        parents: key -> fingerprint of the artifacts it is made from.
        fingerprint: hash of all of these and the stage's revision.
    """

    stage: str
    key: str
    config: Mapping[str, Any]
    seed: int
    parents: Mapping[str, str]
    fingerprint: str

    @property
    def name(self) -> str:
        """What the step is called on a progress line."""
        return self.key.partition("/")[2]


class _Planner:
    """Collects steps in order; a step's parents must have been added before it."""

    def __init__(self) -> None:
        self.steps: dict[str, Step] = {}
        self._known: dict[str, str] = {}

    def add(
        self,
        stage: str,
        key: str,
        config: Config | Mapping[str, Any],
        seed: int,
        *parents: str,
        outside: Mapping[str, str] | None = None,
    ) -> str:
        """Add a step unless an equal one is there; return the key of the one that is there now.

        ``outside``: folder -> fingerprint of artifacts of other runs that it is made from.
        """
        values = config.model_dump(mode="json") if isinstance(config, Config) else dict(config)
        known = {parent: self.steps[parent].fingerprint for parent in parents}
        known |= outside or {}
        mark = stores.fingerprint(stage, values, seed, known, revision(stage))
        # Pre-rankers are looked up by the name of their arm, so each keeps a step of its own.
        same = self._known.setdefault(mark, key) if stage != "train" else key
        self.steps.setdefault(same, Step(stage, key, values, seed, known, mark))
        return same


@dataclass(frozen=True)
class _Branch:
    """A recipe or one of its variants, and the end of the keys of what it makes itself.

    Attributes:
        recipe: the recipe, a variant's changes made.
        base: the recipe without variants' changes.
        end: empty for the recipe itself, ``@NAME`` for a variant.
    """

    recipe: Recipe
    base: Recipe
    end: str

    def most_anchors(self, source: str) -> int:
        """Return how many anchors of a user are made, of which all methods read the first.

        A variant that differs in their number alone takes those of the base, where they suffice.
        """
        recipe, base = self.recipe, self.base
        own, whole = recipe.most_anchors(source), base.most_anchors(source)
        number = {"n_anchors": base.generate.n_anchors}
        alike = recipe.generate.model_copy(update=number) == base.generate and all(
            getattr(recipe, stage) == getattr(base, stage)
            for stage in ("encode", "tokenize", "finetune")
        )
        return max(own, whole) if alike else own


def plan(recipe: Recipe) -> tuple[Step, ...]:
    """Return every step of ``recipe`` and its variants, stage by stage; parents come first.

    A variant adds only the steps that its changes decide; all others it shares.
    """
    planner, seed = _Planner(), recipe.seed
    files = source_files(recipe.prepare.path, recipe.folder, [Path(recipe.out), Path(recipe.cache)])
    source = {**recipe.prepare.model_dump(mode="json"), "files": files}
    if recipe.prepare.source in READERS:
        source["reader"] = READERS[recipe.prepare.source]
    dataset = planner.add("prepare", "dataset", _as_made(recipe, source), seed)
    _plan_branch(planner, _Branch(recipe, recipe, ""), dataset)
    for name in recipe.variants:
        _plan_branch(planner, _Branch(recipe.variant(name), recipe, f"{AT}{name}"), dataset)
    rankers = [key for key in planner.steps if key.startswith("rankers/")]
    others = [key for key in planner.steps if not key.startswith("rankers/")]
    planner.add("evaluate", "report", recipe.evaluate, seed, *others, *rankers)
    return tuple(sorted(planner.steps.values(), key=lambda step: STAGES.index(step.stage)))


def _as_made(recipe: Recipe, source: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the run's dataset where they come to the same as ``source``.

    So neither sections of other sources nor the spelling of the path make it stale, and what was
    made before stays what it is.
    """
    made = None
    with suppress(PrerankError):  # what cannot be read now is told by what needs it
        made = store_at(recipe.folder, recipe.uri).manifest("dataset")
    if made is None or made.kind != "prepare" or _deciding(made.config) != _deciding(source):
        return source
    return dict(made.config)


def _deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of the settings of `prepare` decides a dataset."""
    source = str(config.get("source"))
    own = {key: config.get(key) for key in ("source", own_section(source))}
    if source == "world":
        return own
    path = str(config.get("path"))
    # The last name becomes the data set's, and relative places of images start at the folder.
    place = (path.rstrip("/"), "") if is_uri(path) else (str(Path(path).resolve()), Path(path).name)
    return {**own, "place": place, **{key: config.get(key) for key in LOGGED}}


def _plan_branch(planner: _Planner, branch: _Branch, dataset: str) -> None:
    """Add the steps of one branch from encode to train."""
    recipe, end, seed = branch.recipe, branch.end, branch.recipe.seed
    embeddings = planner.add(
        "encode", f"embeddings{end}", recipe.encode, seed, dataset, outside=encoders(recipe)
    )
    sids = planner.add(
        "tokenize",
        f"semantic_ids{end}",
        recipe.tokenize,
        seed,
        dataset,
        embeddings,
        outside=outside(recipe, recipe.tokenize.append_to, "tokenize", "tokenize.append_to"),
    )
    made_from = (dataset, embeddings, sids)
    read = {(m.anchors, recipe.n_anchors_of(m)) for m in recipe.methods.values() if m.anchors}
    anchors = {of: _plan_anchors(planner, branch, made_from, *of) for of in sorted(read)}
    space = (dataset, embeddings)
    for name, method in recipe.methods.items():
        taught_by = _plan_teacher(planner, branch, name, space)
        label = _plan_labels(planner, branch, name, space, anchors, taught_by)
        teacher = taught_by if recipe.train_of(method).needs_teacher else ""
        parents = [parent for parent in (*space, label, teacher) if parent]
        for k in recipe.seeds:
            key = f"rankers/{name}{end}/seed{k}"
            config = recipe.train_of(method)
            planner.add("train", key, config, k, *parents, outside=code(config))


def _plan_anchors(
    planner: _Planner, branch: _Branch, parents: tuple[str, ...], name: str, n: int
) -> str:
    """Add the anchors ``name``, ``n`` of each user, and what they are made from; return their key.

    A language model's are decoded once, as many as the method with most of them reads.
    """
    recipe, most = branch.recipe, branch.most_anchors(name)
    key = f"anchors/{name}{f'-{n}' if n < most else ''}{branch.end}"
    made_from: tuple[str, ...] = ()
    if "+" in name:
        parts = name.split("+")
        made_from = tuple(_plan_anchors(planner, branch, parents, part, n) for part in parts)
    elif name == "shuffled":
        made_from = (_plan_anchors(planner, branch, parents, "llm", n),)
    elif name in DECODED and n < most:
        source = _plan_anchors(planner, branch, parents, name, most)
        return planner.add("generate", key, {"source": name, "first": n}, recipe.seed, source)
    elif name in DECODED:
        dataset, _, sids = parents
        model = f"anchor_model{branch.end}"
        old = outside(recipe, recipe.finetune.reuse, "finetune", "finetune.reuse")
        old |= weights(recipe, recipe.finetune.checkpoint)
        made_from = (
            planner.add(
                "finetune", model, recipe.finetune, recipe.seed, dataset, sids, outside=old
            ),
        )
    elif name not in ("history", "random", "popular"):
        raise ConfigError(
            "unknown anchors",
            where="methods.*.anchors",
            must="llm, llm-debiased, history, random, popular, shuffled, or some joined by +",
            got=name,
        )
    config = recipe.generate.of_source(name).model_copy(update={"n_anchors": n})
    settings = {"source": name, **config.model_dump(mode="json")}
    return planner.add("generate", key, settings, recipe.seed, *parents, *made_from)


def _plan_teacher(planner: _Planner, branch: _Branch, name: str, parents: tuple[str, ...]) -> str:
    """Add the teacher of one method, empty if it has none; methods without changes share one.

    What a variant changes of the pre-ranker is no change of the teacher.
    """
    recipe, method = branch.recipe, branch.recipe.methods[name]
    if not method.teacher:
        return ""
    own = branch.base.teacher_of(method)
    shared = branch.base.teacher_of(method.model_copy(update={"teach": {}}))
    config: dict[str, Any] = {"train": own.model_dump(mode="json")}
    if method.adapts_teacher:
        pairs = recipe.label.model_dump(mode="json", include=PAIR_KEYS)
        config["label"] = {**pairs, "source": UNLABELED}
    of = "" if own == shared else f"-of-{name}"
    key = f"teachers/{method.teacher}{of}{branch.end}"
    return planner.add("teach", key, config, recipe.seed, *parents, outside=code(own))


def _plan_labels(
    planner: _Planner,
    branch: _Branch,
    name: str,
    parents: tuple[str, ...],
    anchors: Mapping[tuple[str, int], str],
    teacher: str,
) -> str:
    """Add the pseudo-labels of one method, empty if it has none; equal settings share them."""
    method = branch.recipe.methods[name]
    config = branch.recipe.label_of(method)
    if config.source == "none":
        return ""
    reads_anchors = config.source in ("gpl", plugins.PLUGIN) and method.anchors
    read = method.anchors, branch.recipe.n_anchors_of(method)
    more = [anchors[read]] if reads_anchors else []
    if config.needs_teacher:
        more.append(teacher)
    key = f"labels/{name}{branch.end}"
    seed = branch.recipe.seed
    return planner.add("label", key, config, seed, *parents, *more, outside=code(config))


def encoders(recipe: Recipe) -> dict[str, str]:
    """Return what encoders are made of beside their settings: plug-ins and models on this machine.

    Those of a fusion's parts too.
    """
    used = (recipe.encode, *recipe.encode.fusion.parts)
    return {**code(*used), **weights(recipe, *(one.model for one in used))}


def code(*configs: plugins.PluginConfig) -> dict[str, str]:
    """Return plug-in -> hash of its module, of those that ``configs`` name."""
    named = [config.plugin for config in configs if config.plugin]
    return {name: plugins.mark(name, "plugin") for name in named}


def outside(recipe: Recipe, path: str, stage: str, where: str) -> dict[str, str]:
    """Return folder -> fingerprint of another run's artifact; empty if ``path`` is."""
    if not path:
        return {}
    inside = Path(path).resolve().is_relative_to(recipe.folder.resolve())
    found = None if inside else stores.read_manifest(Path(path))
    if found is None or found.kind != stage:
        raise ConfigError(
            f"there is no finished artifact of `{stage}`",
            where=where,
            must="its folder in another, finished run",
            got=path,
        )
    return {path: found.fingerprint}


def weights(recipe: Recipe, *paths: str) -> dict[str, str]:
    """Return folder -> what is in it, of the checkpoints in ``paths`` that lie on this machine."""
    folders = sorted({path for path in paths if path and Path(path).is_dir()})
    return {path: _content(recipe, path) for path in folders}


def _content(recipe: Recipe, path: str) -> str:
    """Return an artifact's fingerprint, or a hash of the files of a folder that is none."""
    made = stores.read_manifest(Path(path))
    if made is not None:
        return made.fingerprint
    files = source_files(path, recipe.folder, ())
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]


def revision(stage: str) -> int:
    """Return the revision of a stage's code."""
    return REVISIONS.get(stage, 0)
