"""The whole story, one function a verb: from logs to a report.

    prepare -> encode -> tokenize -> finetune -> generate -> [teach] -> label -> train -> evaluate

`plan` (plan.py) turns a recipe into steps. Each step makes one artifact; one whose fingerprint
already stands in the store is skipped, so a killed run goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from prerank import memory, remote
from prerank import store as stores
from prerank.anchors.config import DECODED
from prerank.artifacts import (
    UNLABELED,
    Dataset,
    FloatArray,
    InterestAnchors,
    ItemEmbeddings,
    Pools,
    PseudoLabels,
    SemanticIds,
)
from prerank.errors import ConfigError, DataError
from prerank.evaluation.extra import (
    ArmExtra,
    AuditExtra,
    Card,
    CostExtra,
    ReportExtra,
    StageExtra,
)
from prerank.lock import die_with_parent, given_up_when_stopped, locked
from prerank.parts import DatasetParts, StoredAnchors, blank, save_anchors
from prerank.plan import Step, plan, revision
from prerank.progress import log, log_step, track
from prerank.progress import stage as progress_stage
from prerank.recipe import AT, VARIED, Recipe
from prerank.spread import Spread, here
from prerank.store import Manifest, Store
from prerank.tracking.measures import epoch, measures, prefix
from prerank.tracking.open import open_tracking
from prerank.tracking.tracker import End, Forward, Measures, Tracking
from prerank.vocabulary import Vocabulary

T = TypeVar("T")

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

    from prerank.labels.matching import Pooling
    from prerank.ranking.pre_ranker import PreRanker

HEARD_EVERY_S = 1.0
"""How often the first process takes what the others tell of their epochs."""
SAMPLE_USERS = 3
ALIKE = 0.7
"""Items of one semantic ID with a mean cosine below this are worth a word."""
SCORED, SCORED_USERS, SCORED_ROWS = "scored.safetensors", 50, 5000
"""File in a pre-ranker's folder: its logits of so many users' rows, to score once more later."""


# ---- the run ---------------------------------------------------------------------------------


class Run:
    """A recipe, its plan and its store: what the verbs below need.

    Attributes:
        tracking: takes figures; goes nowhere but within `tracked`, in the run's first process.
    """

    def __init__(
        self, recipe: Recipe, steps: Sequence[Step] | None = None, store: Store | None = None
    ) -> None:
        """Plan ``recipe``; or take the ``steps`` and the ``store`` of a run that stands."""
        self.recipe = recipe
        self.store = store or remote.store_at(recipe.folder, recipe.uri)
        self.steps = {step.key: step for step in (plan(recipe) if steps is None else steps)}
        self.tracking = Tracking({})
        self.spread: Spread = here
        self.verbs = VERBS
        self._cache: dict[str, Any] = {}

    def announce(self, steps: Sequence[Step]) -> None:
        """Where the run has a URI: write the recipe there, and what is finished here alone."""
        if isinstance(self.store, remote.RemoteStore):
            (self.store.place / "recipe.toml").write(self.recipe.to_toml().encode())
            for step in steps:
                self.store.catch_up(step.key, step.fingerprint)

    def done(self, step: Step) -> bool:
        """Say whether the step's artifact stands in the store, whole and of these parents.

        Bytes are hashed where they are read, not here: a finished run starts in no time.
        """
        return self.store.has(step.key, step.fingerprint, step.parents)

    def path(self, key: str) -> Path:
        """Return the folder of a finished artifact of this recipe; raise if stale or damaged."""
        return self.store.checked(key, self.steps[key].fingerprint)

    def load(self, key: str, kind: type[Any]) -> Any:
        """Return a finished artifact; the small shared ones are kept in memory."""
        if key in self._cache:
            return self._cache[key]
        artifact = stores.load(self.path(key), kind)
        if kind in (Dataset, ItemEmbeddings, SemanticIds):
            self._cache[key] = artifact
        return artifact

    @property
    def dataset(self) -> Dataset:
        """The prepared dataset."""
        found: Dataset = self.load("dataset", Dataset)
        return found

    @property
    def catalog(self) -> Dataset:
        """The prepared dataset; where it is in parts, without its users and their events."""
        parts = self.parts
        if parts is None:
            return self.dataset
        items, catalog = stores.load_catalog(parts.path)
        return replace(blank(parts.about["name"], "ms", Vocabulary.of([]), items), catalog=catalog)

    @property
    def parts(self) -> DatasetParts | None:
        """The prepared dataset part by part; None if it was written as one whole."""
        if "parts" not in self._cache:
            self._cache["parts"] = DatasetParts.open(self.path("dataset"))
        found: DatasetParts | None = self._cache["parts"]
        return found

    @property
    def space(self) -> ItemEmbeddings:
        """The frozen semantic space of the recipe itself; a variant may have another."""
        found: ItemEmbeddings = self.load("embeddings", ItemEmbeddings)
        return found

    def parents(self, step: Step, stage: str) -> list[str]:
        """Return the keys of the artifacts of ``stage`` that ``step`` is made from."""
        own = (key for key in step.parents if key in self.steps)
        return [key for key in own if self.steps[key].stage == stage]

    def embeddings(self, step: Step) -> ItemEmbeddings:
        """Return the frozen semantic space that ``step`` is made from."""
        found: ItemEmbeddings = self.load(self.parents(step, "encode")[0], ItemEmbeddings)
        return found

    def semantic_ids(self, step: Step) -> SemanticIds:
        """Return the items' semantic IDs that ``step`` is made from."""
        found: SemanticIds = self.load(self.parents(step, "tokenize")[0], SemanticIds)
        return found

    def anchors(self, step: Step) -> InterestAnchors | None:
        """Return the anchors that ``step`` is made from, None if it needs none."""
        keys = self.parents(step, "generate")
        return self.load(keys[0], InterestAnchors) if keys else None

    def labels(self, step: Step) -> PseudoLabels | None:
        """Return the pseudo-labels that ``step`` is made from, None for exposed-only."""
        keys = self.parents(step, "label")
        return self.load(keys[0], PseudoLabels) if keys else None

    def ancestors(self, step: Step) -> set[str]:
        """Return the keys of ``step`` and of all that it is made from."""
        found = {step.key}
        for parent in step.parents:
            if parent in self.steps:  # no artifact of another run, and no plug-in
                found |= self.ancestors(self.steps[parent])
        return found

    def varied(self, recipe: Recipe, store: Store) -> Run:
        """Return the run of a recipe that differs from teachers on; what is in memory is kept.

        What the other run takes into memory goes with it.
        """
        other = Run(recipe, store=store)
        other._cache = dict(self._cache)
        return other

    def teacher(self, step: Step) -> PreRanker | None:
        """Return the ranker whose scores ``step`` reads, None for most methods."""
        keys = self.parents(step, "teach")
        return self.ranker(self.steps[keys[0]]) if keys else None

    def ranker(self, step: Step) -> PreRanker:
        """Return the trained model that ``step`` makes, a teacher or a pre-ranker."""
        from prerank.ranking.pre_ranker import PreRanker

        return PreRanker.load(self.path(step.key), self.dataset, self.embeddings(step))

    def teacher_scores(self, step: Step) -> Callable[..., FloatArray]:
        """Return what scores (user, item, time) for ``step``; equal pairs are scored once.

        Most methods that distil label the same pairs, and their teacher is slow.
        """
        key = self.parents(step, "teach")[0]
        mark = f"scores of {self.steps[key].fingerprint}"

        def score_pairs(*pairs: NDArray[Any]) -> FloatArray:
            asked, known = self._cache.get(mark, ((), None))
            if known is None or not all(map(np.array_equal, asked, pairs)):
                known = self.ranker(self.steps[key]).score_pairs(*pairs)
                self._cache[mark] = (pairs, known)
            found: FloatArray = known
            return found

        return score_pairs

    def rankers(self, arm: str) -> list[Step]:
        """Return the steps that train the pre-rankers of an arm, one a training seed."""
        return [self.steps[f"rankers/{arm}/seed{k}"] for k in self.recipe.seeds]

    def timings(self) -> list[StageExtra]:
        """Return what is known of every finished artifact, in plan order."""
        found: list[StageExtra] = []
        for step in self.steps.values():
            manifest = self.store.manifest(step.key)
            if manifest is not None:
                found.append(
                    {
                        "stage": step.key,
                        "seconds": manifest.seconds,
                        "fingerprint": manifest.fingerprint,
                        "verb": manifest.kind,
                        "parents": list(manifest.parents),
                        "peak_bytes": int(manifest.notes.get("peak_bytes", 0)),
                    }
                )
        return found


# ---- one function a verb: fill the folder ``out`` with the step's artifact ---------------------


def prepare(run: Run, step: Step, out: Path) -> None:
    """Logs -> Dataset."""
    from prerank.data.parted import is_large, prepare_parts
    from prerank.data.prepare import prepare as make

    config = run.recipe.prepare
    if remote.is_uri(config.path):
        name = PurePosixPath(config.path).name
        folder = Path(run.recipe.cache) / "logs" / remote.local_name(config.path) / name
        here = remote.fetch_folder(config.path, folder)
        config = config.model_copy(update={"path": str(here)})
    logs = Path(config.path)
    if is_large(logs, config):
        work = run.store.work(step.key, step.fingerprint)
        prepare_parts(config, logs, step.seed, out, work)
    else:
        stores.save(out, make(config, step.seed))


def encode(run: Run, step: Step, out: Path) -> None:
    """Catalog -> ItemEmbeddings."""
    from prerank.embeddings.config import EncodeConfig
    from prerank.embeddings.encode import encode as make

    work = run.store.work(step.key, step.fingerprint)
    config = EncodeConfig.parse(step.config)
    stores.save(out, make(run.catalog, config, step.seed, work, run.spread))


def tokenize(run: Run, step: Step, out: Path) -> None:
    """ItemEmbeddings -> SemanticIds."""
    from prerank.semantic_ids.config import TokenizeConfig
    from prerank.semantic_ids.tokenize import tokenize as make

    config, published = TokenizeConfig.parse(step.config), None
    if config.append_to:
        folder = Path(config.append_to)
        published = stores.load(Store(folder.parent).checked(folder.name), SemanticIds)
    space, items = run.embeddings(step), run.catalog.items
    made = make(space, config, step.seed, items=items, published=published, spread=run.spread)
    stores.save(out, made)
    cosine = made.quality["bucket_cosine"]
    if cosine is not None and cosine < ALIKE:
        log(
            f"tokenize: items that share a semantic ID are hardly alike (cosine {cosine:.2f}, "
            "usual is above 0.9): running numbers in the titles, or too few codes?"
        )


def finetune(run: Run, step: Step, out: Path) -> None:
    """Histories -> AnchorModel, a Hugging Face folder; checkpoints survive a kill."""
    from prerank.anchors.config import FinetuneConfig
    from prerank.anchors.finetune import finetune as make

    config = FinetuneConfig.parse(step.config)
    if config.reuse:
        reuse_model(Path(config.reuse), run.semantic_ids(step), out)
        return
    stores.require_whole(config.checkpoint)
    work = run.store.work(step.key, step.fingerprint)
    start = prefix(step.stage, step.key)

    def on_epoch(epoch: int, figures: Mapping[str, float]) -> None:
        run.tracking.log({f"{start}/{name}": value for name, value in figures.items()}, epoch)

    make(run.dataset, run.semantic_ids(step), config, step.seed, out, work, on_epoch)


def reuse_model(folder: Path, ids: SemanticIds, out: Path) -> None:
    """Copy another run's AnchorModel to ``out``; its semantic IDs lie beside it.

    Raises:
        ConfigError: it was trained on semantic IDs of other codebooks.
    """
    model = Store(folder.parent).checked(folder.name)
    learned: SemanticIds = stores.load(Store(folder.parent).checked("semantic_ids"), SemanticIds)
    if not np.array_equal(learned.codebooks, ids.codebooks):
        raise ConfigError(
            "the anchor model was trained on semantic IDs of other codebooks",
            where="finetune.reuse",
            must="a model whose semantic IDs these were appended to (tokenize.append_to)",
            got=str(folder),
        )
    unlike = shutil.ignore_patterns(stores.MANIFEST)
    shutil.copytree(model, out, dirs_exist_ok=True, ignore=unlike)


def generate(run: Run, step: Step, out: Path) -> None:
    """AnchorModel -> InterestAnchors in shards; or one of the controls without an LLM."""
    from prerank.anchors.quality import anchor_quality

    parts = run.parts
    if parts is not None and step.config["source"] == "history":
        data = generate_parts(run, step, parts, out)
        anchors, _ = StoredAnchors.open(out).of_users(0, len(data.users))
    else:
        anchors = make_anchors(run, step)
        data = run.dataset
        stores.save(out, anchors.compact())
    whole = _made_with_items(run, step)
    sids, space = run.semantic_ids(whole), run.embeddings(whole)
    report = anchor_quality(anchors, data, sids, space, step.seed)
    (out / "quality.json").write_text(json.dumps(report, indent=1))


def generate_parts(run: Run, step: Step, parts: DatasetParts, out: Path) -> Dataset:
    """Write the histories' anchors of a dataset in parts; return the part that stands for all.

    It is the first one: what the report says of anchors it says of this sample of users.
    """
    from prerank.anchors.config import GenerateConfig
    from prerank.anchors.controls import history_anchors

    settings = {name: value for name, value in step.config.items() if name != "source"}
    n_anchors = GenerateConfig.parse(settings).n_anchors
    sids, space = run.semantic_ids(step), run.embeddings(step)
    made = (history_anchors(part, sids, space, n_anchors, step.seed) for part in parts)
    work = run.store.work(step.key, step.fingerprint)
    save_anchors(out, iter(track(made, "anchors", total=len(parts))), space.vectors, work)
    return parts.part(0)


def make_anchors(run: Run, step: Step) -> InterestAnchors:
    """Return the anchors that ``step`` says: decoded, cut from others, joined, or a control."""
    from prerank.anchors import controls
    from prerank.anchors.config import GenerateConfig

    settings = dict(step.config)
    source = settings.pop("source")
    parts = [run.load(key, InterestAnchors) for key in run.parents(step, "generate")]
    if "first" in settings:
        few: InterestAnchors = parts[0].first(settings["first"])
        return few
    config = GenerateConfig.parse(settings)
    data, sids, space = run.dataset, run.semantic_ids(step), run.embeddings(step)
    if source in DECODED:
        from prerank.anchors.generate import generate as make

        work = run.store.work(step.key, step.fingerprint)
        model = run.path(run.parents(step, "finetune")[0])
        workers = run.recipe.workers
        return make(data, sids, space, model, config, step.seed, work, workers, run.spread, source)
    if "+" in source:
        joined: InterestAnchors = reduce(controls.join, parts)
        return joined
    if source == "shuffled":
        return controls.shuffled_anchors(parts[0], step.seed)
    if source == "history":
        return controls.history_anchors(data, sids, space, config.n_anchors, step.seed)
    if source == "popular":
        return controls.popular_anchors(data, sids, space, config.n_anchors)
    return controls.random_anchors(data, sids, space, config.n_anchors, step.seed)


def teach(run: Run, step: Step, out: Path) -> None:
    """Clicks -> the ranker that scores pairs for the baselines that distil."""
    from prerank.labels.config import LabelConfig
    from prerank.labels.label import label as make_labels
    from prerank.ranking.config import TrainConfig
    from prerank.ranking.train import train as make

    space, pairs = run.embeddings(step), None
    if "label" in step.config:
        wanted = LabelConfig.parse(step.config["label"])
        pairs = make_labels(run.dataset, space, None, wanted, step.seed)
    config = TrainConfig.parse(step.config["train"])
    told, work = on_epoch(run, step), run.store.work(step.key, step.fingerprint)
    made = make(run.dataset, space, pairs, config, step.seed, on_epoch=told, work=work)
    _save_ranker(run, made, out)


class LabelError(DataError):
    """The labels of a method cannot be made from this data.

    Attributes:
        key: the artifact that was to be made.
        why: what is wrong with the data, one line.
    """

    key = why = ""

    @classmethod
    def of(cls, step: Step, error: DataError) -> LabelError:
        """Return ``error`` with the name of the method whose labels were to be made."""
        leave = f"or leave {step.name} out of --methods and of the recipe"
        found = cls(
            f"the labels of {step.name} cannot be made: {error.what}",
            where=error.where,
            must=error.must,
            got=error.got,
            hint=f"{error.hint}; {leave}" if error.hint else leave,
        )
        found.key, found.why = step.key, f"{error.what} ({error.got})" if error.got else error.what
        return found


def label(run: Run, step: Step, out: Path) -> None:
    """InterestAnchors, or a teacher, and unexposed candidates -> PseudoLabels.

    Raises:
        LabelError: the data does not allow it.
    """
    try:
        make_labels(run, step, out)
    except DataError as error:
        raise LabelError.of(step, error) from error
    fit = json.loads((out / "labels.json").read_text())["fit"]
    if fit["pseudo_weight_factor"] == 0:
        log(f"label: {step.name}: no skill shown on held-out clicks, its labels get no weight")
    if step.name == run.recipe.evaluate.method and _follows_proposals(run, fit):
        log(
            f"label: {step.name}: no candidates were logged, so the prior {fit['prior']:.3g} "
            "follows from label.proposed_per_user; state label.prior, or try 'exposed'"
        )


def _follows_proposals(run: Run, fit: Mapping[str, Any]) -> bool:
    """Say whether labels have a prior that was estimated over pairs which we drew ourselves."""
    from prerank.labels.calibration import OBSERVED

    observed = fit.get("prior_source") == OBSERVED
    return observed and run.parts is None and not len(run.dataset.candidates)


def make_labels(run: Run, step: Step, out: Path) -> None:
    """Write the labels that ``step`` says, part by part where the dataset is in parts."""
    from prerank.labels.config import LabelConfig, has_parts
    from prerank.labels.label import label as make
    from prerank.labels.parts import label_parts

    config = LabelConfig.parse(step.config)
    space = run.embeddings(step)
    parts = run.parts
    if parts is not None and has_parts(config):
        made = StoredAnchors.open(run.path(run.parents(step, "generate")[0]))
        work = run.store.work(step.key, step.fingerprint)
        label_parts(parts, space, made, config, step.seed, out, work)
        return
    asked = run.teacher_scores(step) if config.needs_teacher else None
    anchors = run.anchors(step)
    stores.save(out, make(run.dataset, space, anchors, config, step.seed, asked, run.spread))


def train(run: Run, step: Step, out: Path) -> None:
    """Clicks and pseudo-labels -> PreRanker.

    The label stage says how much of lambda its labels have earned on held-out clicks.
    """
    from prerank.ranking.config import TrainConfig, earned_weight
    from prerank.ranking.train import train as make

    labels = run.labels(step)
    config = earned_weight(TrainConfig.parse(step.config), labels)
    space, teacher = run.embeddings(step), run.teacher(step)
    told, work = on_epoch(run, step), run.store.work(step.key, step.fingerprint)
    made = make(run.dataset, space, labels, config, step.seed, teacher, told, work)
    _save_ranker(run, made, out)


def on_epoch(run: Run, step: Step) -> Callable[[Mapping[str, float | None]], None]:
    """Return what sends an epoch's record to the trackers as it ends."""
    start = prefix(step.stage, step.key)

    def told(record: Mapping[str, float | None]) -> None:
        number, figures = epoch(record, start)
        run.tracking.log(figures, number)

    return told


def _save_ranker(run: Run, ranker: PreRanker, out: Path) -> None:
    """Write a trained model, and its scores of a few users' pools for `prerank verify`."""
    ranker.save(out)
    save_scores(run, ranker, out)


def save_scores(run: Run, ranker: PreRanker, out: Path) -> None:
    """Write a trained model's scores of a few users' pools beside it."""
    pools = run.dataset.pools
    users = np.unique(pools.user)
    some = pools.take(np.isin(pools.user, users[:: max(1, len(users) // SCORED_USERS)]))
    some = some.take(np.arange(min(len(some), SCORED_ROWS)))
    logits = ranker.score_pools(some)
    columns: dict[str, NDArray[Any]]
    columns = {"user": some.user, "item": some.item, "time": some.time, "logit": logits}
    stores.save_arrays(out / SCORED, columns)


def evaluate(run: Run, step: Step, out: Path) -> None:
    """Scores of every pre-ranker on the test pools -> Report, as JSON and as one HTML page."""
    from prerank.evaluation.evaluate import evaluate as make
    from prerank.evaluation.evaluate import test_rows, tested
    from prerank.evaluation.extra import with_extra
    from prerank.evaluation.pairing import FILE, UserValues
    from prerank.evaluation.report_html import write_html

    pools = run.dataset.pools.take(test_rows(run.dataset))
    # AUC is no mean over users.
    users = UserValues([one for one in tested(run.recipe.evaluate) if one != "auc"])
    report = make(
        run.dataset,
        run.space,
        ranker_scores(run, pools),
        run.recipe.evaluate,
        step.seed,
        label_scores=label_scores(run, pools),
        on_measured=users.add,
    )
    users.save(out / FILE)
    report = with_extra(report, explain(run))
    stores.save(out, report)
    write_html(report, out / "report.html", title=run.recipe.name)


# ---- helpers of evaluate ---------------------------------------------------------------------


def ranker_scores(run: Run, pools: Pools) -> dict[str, FloatArray]:
    """Return arm -> (seeds, N) logits of its pre-rankers over the rows of ``pools``."""
    arms = run.recipe.arms()
    work = [(arm, step) for arm in arms for step in run.rankers(arm)]
    scored: dict[str, list[FloatArray]] = {arm: [] for arm in arms}
    for arm, step in track(work, "score"):
        scored[arm].append(run.ranker(step).score_pools(pools))
    return {arm: np.stack(rows) for arm, rows in scored.items()}


def label_scores(run: Run, pools: Pools) -> dict[str, FloatArray]:
    """Return name -> (1, N): what the match with anchors says by itself, without a pre-ranker.

    Anchors are matched as methods match them, joined ones also the paper's way, each source alone;
    beside it stand the sum of these matches and the exposure popularity. Pairs that match nothing
    score lowest. What a variant alone matches is named ``...@variant``.
    """
    from prerank.data.unexposed import exposure_counts
    from prerank.labels.matching import match_pairs

    found = {"popularity": exposure_counts(run.dataset)[pools.item].astype(np.float32)}
    for title, (step, way) in track(_matches(run).items(), "match"):
        anchors = run.load(step.key, InterestAnchors)
        space = run.embeddings(_made_with_items(run, step))
        match = match_pairs(pools.user, pools.item, space, anchors, way)
        found[title] = np.nan_to_num(match.relevance, nan=-1.0)
    for step in run.steps.values():
        if step.stage == "generate" and "+" in step.name:
            parts = [run.steps[key].name for key in run.parents(step, "generate")]
            found[f"sum of {step.name}"] = np.sum([found[part] for part in parts], axis=0)
    return {f"match {name}": score[None, :].astype(np.float32) for name, score in found.items()}


def _matches(run: Run) -> dict[str, tuple[Step, Pooling]]:
    """Return title -> anchors and a way to match them: what labels are made from, and parts."""
    from prerank.labels.config import LabelConfig
    from prerank.labels.matching import Pooling

    found: dict[tuple[str, Pooling], str] = {}
    for step in run.steps.values():
        sources = run.parents(step, "generate")
        if step.stage == "generate" and "+" in step.name:
            for key in sources:
                found.setdefault((key, Pooling()), run.steps[key].name)
        if step.stage != "label" or not sources:
            continue
        config, title = LabelConfig.parse(step.config), run.steps[sources[0]].name
        way = Pooling.of(config) if config.source == "gpl" else Pooling()
        if way.pool != "max":
            title = f"{title}, {way.described}"
        of = step.name.partition(AT)[2]
        found.setdefault((sources[0], way), f"{title}{AT}{of}" if of and AT not in title else title)
    return {title: (run.steps[key], way) for (key, way), title in found.items()}


def _made_with_items(run: Run, step: Step) -> Step:
    """Return the step of anchors that ``step`` was cut from, or ``step``; it has an item space."""
    while "first" in step.config:
        step = run.steps[run.parents(step, "generate")[0]]
    return step


def explain(run: Run) -> ReportExtra:
    """Return what a report's page shows besides metrics."""
    from prerank.evaluation import explain as explaining
    from prerank.evaluation.audit import audit
    from prerank.evaluation.cards import data_card
    from prerank.evaluation.overview import catalog_map, describe_cascade

    recipe, labels, unearned = run.recipe, {}, {}
    audits: dict[str, AuditExtra] = {}
    audited: dict[str, AuditExtra | None] = {}
    for arm in track(list(recipe.arms()), "explain"):
        first = run.rankers(arm)[0]
        made = run.labels(first)
        if made is None or made.source == UNLABELED:
            continue
        if made.fit["pseudo_weight_factor"] == 0:
            unearned[arm] = explaining.skill_of(made)
        key = run.parents(first, "label")[0]
        if key in audited and arm not in recipe.methods:
            continue  # a variant with the labels of another arm
        if key not in audited:
            audited[key] = audit(made, run.dataset, recipe.seed)
        found = audited[key]
        if found is not None:
            audits[arm] = found
        if arm in recipe.methods:
            labels[arm] = explaining.describe_labels(made, run.dataset)
    sids: SemanticIds = run.load("semantic_ids", SemanticIds)
    data = run.dataset
    extra: ReportExtra = {
        "title": recipe.name,
        "cascade": describe_cascade(data),
        "map": catalog_map(run.space, sids, data.items, data.catalog.title, recipe.seed),
        "data_card": data_card(data),
        "labels": labels,
        "unearned": unearned,
        "audit": audits,
        "costs": costs(run),
        "arms": described_arms(recipe),
        "semantic_ids": dict(sids.quality),
        "notes": list(data.notes),
        "recipe": recipe.to_toml(),
        "versions": stores.versions(),
        "stages": run.timings(),
    }
    if recipe.evaluate.method not in recipe.methods:
        return extra
    extra["model_card"] = described_ranker(run, recipe.evaluate.method)
    for key in run.parents(run.rankers(recipe.evaluate.method)[0], "label"):
        made, anchors = run.load(key, PseudoLabels), run.anchors(run.steps[key])
        if anchors is not None:
            extra["anchors"] = explaining.describe_anchors(anchors)
            extra["users"] = explaining.sample_users(
                run.dataset, run.space, anchors, made, SAMPLE_USERS, recipe.seed
            )
    return extra


def described_ranker(run: Run, arm: str) -> Card:
    """Return the model card of an arm, from its first seed's pre-ranker."""
    from prerank.evaluation.cards import model_card

    first = run.rankers(arm)[0]
    ranker = run.ranker(first)
    size = sum(weights.numel() for weights in ranker.model.parameters())
    config = ranker.config.model_dump(mode="json")
    labels = run.labels(first)
    return model_card(arm, config, ranker.history, size, run.recipe.seeds, labels)


def costs(run: Run) -> dict[str, CostExtra]:
    """Return time and memory of every arm, from the manifests of what it is made of."""
    found: dict[str, CostExtra] = {}
    for arm in run.recipe.arms():
        steps = run.rankers(arm)
        trained = [m for step in steps if (m := run.store.manifest(step.key)) is not None]
        before = run.ancestors(steps[0]) - {steps[0].key}
        before = {key for key in before if run.steps[key].stage not in ("prepare", "encode")}
        earlier = [m for key in sorted(before) if (m := run.store.manifest(key)) is not None]
        if trained:
            found[arm] = {
                # The median: a process's first pre-ranker also pays for its start.
                "train_seconds": float(np.median([m.seconds for m in trained])),
                "before_seconds": sum(m.seconds for m in earlier),
                "peak_bytes": max(int(m.notes.get("peak_bytes", 0)) for m in trained),
            }
    return found


def described_arms(recipe: Recipe) -> dict[str, ArmExtra]:
    """Return what each variant's arm varies and how, as ``stage.key = value`` texts."""
    return {
        f"{method}{AT}{name}": {
            "method": method,
            "variant": name,
            "changes": [
                f"{stage}.{key} = {json.dumps(value)}"
                for stage in VARIED
                for key, value in getattr(variant, stage).items()
            ],
        }
        for name, variant in recipe.variants.items()
        for method in recipe.variant(name).methods
    }


# ---- running ---------------------------------------------------------------------------------


Verb = Callable[[Run, Step, Path], None]
VERBS: Mapping[str, Verb] = {
    "prepare": prepare,
    "encode": encode,
    "tokenize": tokenize,
    "finetune": finetune,
    "generate": generate,
    "teach": teach,
    "label": label,
    "train": train,
    "evaluate": evaluate,
}


@dataclass(frozen=True)
class Engine:
    """Where work is done: how shards are spread, and the verbs that another cluster runs whole."""

    spread: Spread = here
    verbs: Mapping[str, Verb] = field(default_factory=dict)


def execute(run: Run, step: Step) -> float:
    """Make one step's artifact and publish it; return the seconds it took."""
    start = time.monotonic()
    notes: dict[str, int] = {}  # facts of the making, no part of the fingerprint
    manifest = Manifest(
        step.stage,
        step.fingerprint,
        step.config,
        step.seed,
        step.parents,
        notes=notes,
        revision=revision(step.stage),
    )
    with run.store.publish(step.key, manifest) as out:
        memory.reset_peak()
        run.verbs[step.stage](run, step, out)
        notes["peak_bytes"] = memory.peak_bytes()
    return time.monotonic() - start


@contextmanager
def tracked(run: Run) -> Iterator[None]:
    """Send the figures of what is made to the recipe's trackers."""
    recipe = run.recipe
    settings = recipe.model_dump(mode="json", exclude_none=True)
    run.tracking = open_tracking(recipe.tracking, recipe.name, recipe.folder, settings)
    end: End = "failed"
    try:
        yield
        end = "finished"
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, SIGTERM
        end = "killed"
        raise
    finally:
        run.tracking.close(end)


def report_of(recipe: Recipe, steps: Sequence[Mapping[str, Any]]) -> Path:
    """Return the folder of the report that is among ``steps``, as `run_recipe` returned them.

    The plan is not made again: logs that have grown meanwhile are no matter of this report.
    """
    mark = {step["key"]: step["fingerprint"] for step in steps}["report"]
    return remote.store_at(recipe.folder, recipe.uri).checked("report", mark)


def _track_step(run: Run, step: Step) -> None:
    """Log the figures of a finished artifact; those of epochs were mostly logged as they ended."""
    folder = run.store.path(step.key)
    for number, figures in measures(step.stage, step.key, folder, run.recipe.evaluate.method):
        run.tracking.log(figures, number)


def run_recipe(
    recipe: Recipe, stages: Sequence[str] = (), engine: Engine | None = None
) -> list[dict[str, Any]]:
    """Run the steps of ``stages`` (all by default) that are not done; return what was done.

    Args:
        engine: where work is done; None: in this process and its children.

    Returns:
        One dict a step: stage, key, fingerprint, status (``made`` or ``done before``), seconds.
    """
    run = Run(recipe)
    for name in recipe.unscored():
        log(
            f"evaluate: the recipe has no method {name!r}, which tables would compare with: "
            "[methods] in a recipe replaces all default methods"
        )
    if engine is not None:
        run.spread, run.verbs = engine.spread, {**VERBS, **engine.verbs}
    chosen = [step for step in run.steps.values() if not stages or step.stage in stages]
    with tracked(run), locked(recipe.folder):
        stores.write_whole(recipe.folder / "recipe.toml", recipe.to_toml())
        run.announce(chosen)
        made: dict[str, float] = {}
        todo = [step for step in chosen if not run.done(step)]
        if engine is None:
            _require_places(todo)
        for stage in dict.fromkeys(step.stage for step in chosen):
            mine = [step for step in todo if step.stage == stage]
            if not mine:
                log(f"{stage:9s} done before")
                continue
            for step, seconds in progress_stage(_execute_all(run, mine), stage, len(mine)):
                made[step.key] = seconds
                _track_step(run, step)
                log_step(f"{step.stage:9s} {step.name or step.key:32s} {seconds:7.1f} s")
    return [
        {
            "stage": step.stage,
            "key": step.key,
            "fingerprint": step.fingerprint,
            "status": "made" if step.key in made else "done before",
            "seconds": round(made.get(step.key, 0.0), 3),
        }
        for step in chosen
    ]


def _require_places(steps: Sequence[Step]) -> None:
    """Raise ConfigError now, and not hours later, where a device or a checkpoint is not there."""
    for step in steps:
        config = {**step.config, **step.config.get("train", {}), **step.config.get("rqvae", {})}
        if config.get("device", "auto") not in ("auto", "cpu"):
            from prerank.devices import resolve_device

            resolve_device(config["device"], where=f"{step.stage}.device")
        for key in ("checkpoint", "model"):
            path = str(config.get(key, ""))
            if path.startswith(("/", "./", "../", "~")) and not Path(path).is_dir():
                raise ConfigError(
                    "the model's folder is not there",
                    where=f"{step.stage}.{key}",
                    must="a folder (relative to where prerank is started), or an id on the hub",
                    got=path,
                )


def make(run: Run, keys: Sequence[str]) -> None:
    """Make the artifacts of ``keys`` that are not done, in their order."""
    with tracked(run):
        for step in [run.steps[key] for key in keys]:
            if not run.done(step):
                log(f"{step.stage:9s} {step.name or step.key:32s} {execute(run, step):7.1f} s")
                _track_step(run, step)


def _execute_all(run: Run, steps: Sequence[Step]) -> Iterator[tuple[Step, float]]:
    """Execute steps of one stage; pre-rankers side by side where the recipe has workers."""
    if not steps or steps[0].stage not in ("teach", "train") or run.verbs is not VERBS:
        for step in steps:
            yield step, execute(run, step)
        return
    for key, seconds in in_workers(run, _execute_key, [step.key for step in steps]):
        yield run.steps[key], seconds


def in_workers(
    run: Run, work: Callable[[Run, str], T], names: Sequence[str]
) -> Iterator[tuple[str, T]]:
    """Yield each name with ``work(run, name)`` as they end, in as many processes as the recipe has.

    ``work`` must be a function of a module: the workers import it.
    """
    count = min(run.recipe.workers, len(names))
    if count < 2:
        for name in names:
            yield name, work(run, name)
        return
    context = get_context("spawn")
    told: SimpleQueue[Measures] = context.SimpleQueue()
    with ProcessPoolExecutor(count, context, _start_worker, (run.recipe, told.put)) as pool:
        waiting = {pool.submit(_in_worker, work, name): name for name in names}
        left = set(waiting)
        with given_up_when_stopped(pool):
            while left:
                ended, left = wait(left, HEARD_EVERY_S, FIRST_COMPLETED)
                while not told.empty():
                    number, figures = told.get()
                    run.tracking.log(figures, number)
                for future in ended:
                    yield waiting[future], future.result()


_worker_run: Run | None = None


def _start_worker(recipe: Recipe, tell: Callable[[Measures], None]) -> None:
    """Give each worker its share of the cores: two pools of threads on one core collapse."""
    import torch

    global _worker_run
    die_with_parent()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // recipe.workers))
    _worker_run = Run(recipe)
    _worker_run.tracking = Tracking({"first process": lambda: Forward(tell)})


def _in_worker(work: Callable[[Run, str], T], name: str) -> T:
    if _worker_run is None:
        raise RuntimeError("the worker was not started")
    return work(_worker_run, name)


def _execute_key(run: Run, key: str) -> float:
    return execute(run, run.steps[key])


def describe(run: Run) -> dict[str, Any]:
    """Return the plan with what is done already, plain JSON values (``--dry-run``)."""
    steps = [{**asdict(step), "done": run.done(step)} for step in run.steps.values()]
    return {"folder": str(run.recipe.folder), "steps": steps}
