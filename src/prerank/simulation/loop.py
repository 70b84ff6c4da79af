"""One replication of a simulated A/B test: a shop, its production logs, and the life of an arm.

A morning of an arm: take the logs of the last ``window`` days, make anchors and pseudo-labels,
train a pre-ranker from random weights, serve the day with it, log what happened. Everything that
decides luck is keyed or seeded by replication and day, never by arm.

Letters in shapes: B requests, C candidates, I items, N rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prerank import seeds
from prerank.anchors.config import DECODED
from prerank.anchors.sequences import Sequences, anchor_sequences
from prerank.artifacts import (
    TRAIN,
    UNLABELED,
    VALIDATION,
    Candidates,
    Dataset,
    Exposures,
    InterestAnchors,
    ItemEmbeddings,
    PseudoLabels,
    SemanticIds,
    TimeArray,
)
from prerank.data.world_cascade import (
    EXPOSED,
    STAGES,
    Memory,
    Positives,
    Scorer,
    Traffic,
    blank_memory,
    clicked,
    join,
    remember,
)
from prerank.data.world_model import DAY_MS, START_MS, keyed_uniform
from prerank.embeddings.encode import encode
from prerank.ranking.config import earned_weight
from prerank.recipe import MethodConfig, Recipe
from prerank.semantic_ids.tokenize import tokenize
from prerank.simulation.measures import Counts, Yardstick, count, final_counts, item_counts
from prerank.simulation.shops import PRODUCTION, Market, open_market, with_history
from prerank.store import read_part, require_whole, write_part

if TYPE_CHECKING:
    from prerank.ranking.pre_ranker import PreRanker


@dataclass(frozen=True, eq=False)
class Life:
    """What an arm is and has seen when a day begins.

    Attributes:
        day: the day about to begin, counted from the world's first.
        memory: what production knows.
        past: all positives so far, organic and clicked.
        log: exposures and sampled candidates of the last ``window`` days.
        shown, clicked: (I,) int64 exposures and clicks of each item since the arms started.
        days: the counts of each day served.
    """

    day: int
    memory: Memory
    past: Positives
    log: Traffic
    shown: TimeArray
    clicked: TimeArray
    days: tuple[Counts, ...] = ()


class Replication:
    """The shop of one replication and what all its arms share.

    Built for one process; nothing of it depends on an arm.
    """

    def __init__(self, recipe: Recipe, prepared: Dataset | None, number: int, work: Path) -> None:
        self.recipe, self.config, self.number, self.work = recipe, recipe.simulate, number, work
        self.market: Market = open_market(recipe, prepared, number)
        self.embeddings: ItemEmbeddings = encode(self.market.blank, recipe.encode, recipe.seed)
        self.semantic_ids: SemanticIds = tokenize(self.embeddings, recipe.tokenize, recipe.seed)
        self._anchors: dict[str, tuple[tuple[int, bytes], InterestAnchors]] = {}
        self._first_teachers: dict[tuple[str, str], PreRanker] = {}  # of a kind and its config

    @property
    def first_arm_day(self) -> int:
        """The first day that the arms serve."""
        return self.market.first_day + self.config.n_log_days

    @property
    def last_day(self) -> int:
        """The last day that the arms serve."""
        return self.first_arm_day + self.config.n_days - 1

    def seed(self, *names: str | int) -> int:
        """Return a seed of this replication, the same for every arm."""
        return seeds.derive(self.recipe.seed, "simulate", self.number, *names)

    @cached_property
    def start(self) -> Life:
        """The state in which every arm begins: history and the production policy's logs."""
        market = self.market
        n_items = len(market.blank.items)
        empty = Positives(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int64))
        memory, past = blank_memory(market.shop), [empty]
        for day in range(market.first_day):
            found = market.organic(memory, day)
            memory = remember(memory, found.user, found.item)
            past.append(found)
        nothing = np.zeros(n_items, dtype=np.int64)
        life = Life(
            market.first_day, memory, join(Positives, past), _no_traffic(), nothing, nothing
        )
        for _ in range(self.config.n_log_days):
            life = self.live_a_day(life, None)
        return life

    @cached_property
    def before(self) -> tuple[Counts, ...]:
        """The counts of the production policy's days."""
        return self.start.days

    @cached_property
    def yardstick(self) -> Yardstick:
        """What every arm is measured by."""
        return self._yardstick(self.start.memory)

    def _yardstick(self, memory: Memory) -> Yardstick:
        features = self.market.blank.catalog.features.categorical
        category = features.get(self.config.category, self.semantic_ids.codes[:, 0])
        order = np.argsort(memory.popularity, kind="stable")
        tail = np.zeros(len(order), dtype=np.bool_)
        tail[order[: round(self.config.tail_share * len(order))]] = True
        return Yardstick(
            vectors=self.embeddings.vectors,
            category=np.maximum(category, 0),
            tail=tail,
            release=self.market.release,
            start=START_MS + self.first_arm_day * DAY_MS,
            position_bias=self.market.shop.config.position_bias,
        )

    # ---- a day ------------------------------------------------------------------------------

    def live_a_day(self, life: Life, prerank: Scorer | None) -> Life:
        """Serve one day with ``prerank`` (None: production) and return the next morning."""
        market, day = self.market, life.day
        # Drawn before the day's clicks are known, like a morning's state of knowledge.
        found = market.organic(life.memory, day)
        requests = market.requests(day, self.config.requests_per_day)
        traffic = market.serve(life.memory, requests, day, prerank)
        taken = clicked(traffic)
        memory = remember(life.memory, taken.user, taken.item)
        memory = remember(memory, found.user, found.item)
        arms_serve = day >= self.first_arm_day
        yardstick = self.yardstick if arms_serve else self._yardstick(life.memory)
        shown, hits = item_counts(traffic, len(market.blank.items))
        return Life(
            day=day + 1,
            memory=memory,
            past=join(Positives, [life.past, found, taken]),
            log=self._logged(life.log, traffic, day + 1),
            shown=life.shown + shown if arms_serve else life.shown,
            clicked=life.clicked + hits if arms_serve else life.clicked,
            days=(*life.days, count(traffic, yardstick)),
        )

    def _logged(self, log: Traffic, today: Traffic, morning: int) -> Traffic:
        """Return the log of the window with today's exposures and a sample of its candidates."""
        config = self.market.shop.config
        share = self.config.candidates_per_request / max(1, config.n_recalled - config.n_exposed)
        luck = keyed_uniform(self.market.shop.seed, "logged", today.request, today.item)
        today = today.take((today.stage == EXPOSED) | (luck < share))
        begin = START_MS + (morning - self.config.window) * DAY_MS
        return join(Traffic, [log.take(log.time >= begin), today])

    def morning(self, life: Life, method: MethodConfig) -> Scorer:
        """Return the pre-ranker that ``method`` trains on the arm's own logs."""
        from prerank.ranking.train import train

        dataset = self._dataset(life)
        seed = self.seed("day", life.day)
        config = self.recipe.train_of(method)
        teacher = self._teacher(life, dataset, method, seed) if method.teacher else None
        labels = self._labels(life, dataset, method, teacher, seed)
        asked = teacher if config.needs_teacher else None
        ranker = train(dataset, self.embeddings, labels, earned_weight(config, labels), seed, asked)
        return lambda user, item: ranker.score(user, item)

    def _dataset(self, life: Life) -> Dataset:
        """Return the arm's logs as the stages read them; some requests are held out."""
        log = life.log
        shown = np.flatnonzero(log.stage == EXPOSED)
        held = keyed_uniform(self.market.shop.seed, "validation", log.request[shown])
        split = np.where(held < self.config.validation_share, VALIDATION, TRAIN)
        return replace(
            with_history(self.market.blank, life.past, self._anchor_day(life.day)),
            exposures=Exposures(
                request=log.request[shown],
                user=log.user[shown],
                item=log.item[shown],
                time=log.time[shown],
                click=log.click[shown],
                position=log.position[shown],
                propensity=log.propensity[shown],
                split=split.astype(np.int8),
            ),
            candidates=Candidates(
                request=log.request,
                user=log.user,
                item=log.item,
                time=log.time,
                stage=log.stage,
                score=log.score,
                truth=log.truth,
                stages=STAGES,
            ),
        )

    def _teacher(self, life: Life, dataset: Dataset, method: MethodConfig, seed: int) -> PreRanker:
        """Return the ranker, of the arm's own logs, that scores pairs for methods that distil.

        On the first morning all arms have production's logs: arms that train it alike share it.
        """
        from prerank.labels.label import label
        from prerank.ranking.train import train

        config = self.recipe.teacher_of(method)
        first, key = life.day == self.first_arm_day, (method.teacher, config.model_dump_json())
        if first and key in self._first_teachers:
            return self._first_teachers[key]
        pairs = None
        if method.adapts_teacher:
            wanted = self.recipe.label.model_copy(update={"source": UNLABELED})
            pairs = label(dataset, self.embeddings, None, wanted, seed)
        teacher = train(dataset, self.embeddings, pairs, config, seed)
        if first:
            self._first_teachers[key] = teacher
        return teacher

    def _labels(
        self,
        life: Life,
        dataset: Dataset,
        method: MethodConfig,
        teacher: PreRanker | None,
        seed: int,
    ) -> PseudoLabels | None:
        from prerank.labels.label import label

        config = self.recipe.label_of(method)
        if config.source == "none":
            return None
        anchors = self._anchors_read(method, life, dataset) if method.anchors else None
        asked = teacher.score_pairs if teacher is not None and config.needs_teacher else None
        return label(dataset, self.embeddings, anchors, config, seed, asked)

    # ---- anchors ----------------------------------------------------------------------------

    def _anchor_day(self, day: int) -> int:
        """Return the day whose morning's histories the anchors of ``day`` see.

        Never later than the window: no candidate's own future may be among its anchors.
        """
        moved = max(0, day - self.config.window - self.market.first_day)
        return (
            self.market.first_day + moved // self.config.anchors_every * self.config.anchors_every
        )

    def _anchors_read(self, method: MethodConfig, life: Life, dataset: Dataset) -> InterestAnchors:
        """Return the anchors that a method reads, of all its sources."""
        from prerank.anchors.controls import join

        n, names = self.recipe.n_anchors_of(method), method.anchors.split("+")
        return reduce(join, (self._anchors_of(name, n, life, dataset) for name in names))

    def _anchors_of(self, name: str, n: int, life: Life, dataset: Dataset) -> InterestAnchors:
        """Return ``n`` anchors of each user; of a source that other arms read too, the same ones.

        Those of a language model are the first of the ones decoded; controls are made at once with
        as many, so that no arm depends on how many another one reads.
        """
        from prerank.anchors import controls

        if name in DECODED:
            return self._decoded(name, life, dataset).first(n)
        sids, space = self.semantic_ids, self.embeddings
        seed = self.seed("anchors", self._anchor_day(life.day))
        if name == "shuffled":
            return controls.shuffled_anchors(self._decoded("llm", life, dataset).first(n), seed)
        if name == "history":
            return controls.history_anchors(dataset, sids, space, n, seed)
        if name == "popular":
            return controls.popular_anchors(dataset, sids, space, n)
        return controls.random_anchors(dataset, sids, space, n, seed)

    def _decoded(self, name: str, life: Life, dataset: Dataset) -> InterestAnchors:
        """Return a language model's anchors; decoded once for all that read the same histories.

        Kept are those from days before the arms parted, and the last ones of each source.
        """
        cut = self._anchor_day(life.day)
        mark = cut, _digest(anchor_sequences(dataset))
        place = name if cut > self.first_arm_day else f"{name} {cut}"
        kept = self._anchors.get(place)
        if kept is None or kept[0] != mark:
            kept = self._anchors[place] = mark, self._decode(name, cut, dataset)
        return kept[1]

    def _decode(self, name: str, cut: int, dataset: Dataset) -> InterestAnchors:
        from prerank.anchors.generate import generate

        most = {"n_anchors": self.recipe.most_anchors(name)}
        config, seed = self.recipe.generate.model_copy(update=most), self.seed("anchors", cut)
        about = (dataset, self.semantic_ids, self.embeddings, self._model, config, seed)
        with TemporaryDirectory() as work:
            return generate(*about, Path(work), source=name)

    @cached_property
    def _model(self) -> Path:
        """The language model, trained once on the histories before the first logged day."""
        from prerank.anchors.finetune import finetune

        done = self.work / "anchor_model"
        if not done.exists():
            dataset = with_history(self.market.blank, self.start.past, self.market.first_day)
            require_whole(self.recipe.finetune.checkpoint)
            out, work = self.work / "anchor_model.part", self.work / "finetune"
            out.mkdir(parents=True, exist_ok=True)
            work.mkdir(parents=True, exist_ok=True)
            seed = self.recipe.seed
            finetune(dataset, self.semantic_ids, self.recipe.finetune, seed, out, work)
            out.rename(done)
        return done

    # ---- an arm -----------------------------------------------------------------------------

    def prerank_of(self, arm: str, life: Life) -> Scorer | None:
        """Return the pre-ranker with which ``arm`` serves the day."""
        if arm == PRODUCTION:
            return None
        if arm in self.market.oracles:
            known = self.market.oracles[arm]
            return lambda user, item: known(np.broadcast_to(user[:, None], item.shape), item)
        return self.morning(life, self.recipe.methods[arm])

    def begin(self) -> Life:
        """Return the morning on which the arms start, no day of theirs counted yet."""
        return replace(self.start, days=())

    def finish(self, life: Life) -> Counts:
        """Return what only the whole test can count."""
        end = START_MS + (self.last_day + 1) * DAY_MS
        return final_counts(life.shown, life.clicked, self.yardstick, end)


def _digest(histories: Sequences) -> bytes:
    """Return a hash of histories: what anchors are made from, beside their source and moment."""
    found = hashlib.sha256()
    for column in (histories.item, histories.offsets):
        found.update(np.ascontiguousarray(column).data)
    return found.digest()


def _no_traffic() -> Traffic:
    i64, i32 = np.zeros(0, np.int64), np.zeros(0, np.int32)
    i8, f32 = np.zeros(0, np.int8), np.zeros(0, np.float32)
    return Traffic(i64, i32, i32, i64, i8, f32, i32, f32, f32, i8, i8)


# ---- an arm's life on disk -------------------------------------------------------------------


def save_life(path: Path, life: Life) -> None:
    """Write ``life`` as one file, whole or not at all."""
    arrays: dict[str, NDArray[Any]] = {
        "day": np.array([life.day]),
        "days": np.frombuffer(json.dumps(life.days).encode(), np.uint8),
        "memory.popularity": life.memory.popularity,
        "memory.known": life.memory.known,
        "shown": life.shown,
        "clicked": life.clicked,
        **{f"past.{name}": values for name, values in life.past.columns().items()},
        **{f"log.{name}": values for name, values in life.log.columns().items()},
    }
    write_part(path, arrays)


def load_life(path: Path) -> Life | None:
    """Return the life in ``path``, None if there is none that is whole."""
    arrays = read_part(path)
    if arrays is None:
        return None
    return Life(
        day=int(arrays["day"][0]),
        memory=Memory(**_part(arrays, "memory")),
        past=Positives(**_part(arrays, "past")),
        log=Traffic(**_part(arrays, "log")),
        shown=arrays["shown"],
        clicked=arrays["clicked"],
        days=tuple(json.loads(arrays["days"].tobytes())),
    )


def _part(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {k.partition(".")[2]: v for k, v in arrays.items() if k.startswith(f"{prefix}.")}
