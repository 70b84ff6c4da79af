"""GPL's labels of a dataset in parts: what `prerank.labels.gpl` does, with one part in memory.

    count all parts -> pairs, match and factors of each part, kept in files -> fit -> labels by part

What is fitted is fitted on all parts: the map and the skill on held-out rows (of a sample of users
where there are more than `MAX_HELD`), the prior's shift on a histogram of relevance, and the ranks
of the confidence by counting. Pairs, matches and factors are the same as of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prerank.artifacts import TEST, UNKNOWN_CLICK, Dataset, ItemEmbeddings, PseudoLabels, TimeArray
from prerank.data.unexposed import (
    Beside,
    UnexposedPairs,
    beside_logged,
    earliest,
    interaction_counts,
    propose_pairs,
    unexposed_pairs,
)
from prerank.errors import ConfigError
from prerank.labels.calibration import PriorCounts, folds_of_users, prior_shift
from prerank.labels.confidence import RankTable, weights
from prerank.labels.config import LabelConfig
from prerank.labels.gpl import (
    HeldOut,
    RelevanceMap,
    World,
    factors_of_pairs,
    held_out,
    prior_of,
    rate_counts,
    skill_of,
)
from prerank.labels.label import Summary, require_fit, union
from prerank.labels.matching import Match, Pooling
from prerank.parts import DatasetParts, StoredAnchors
from prerank.progress import log, track
from prerank.seeds import rng
from prerank.store import part_file, read_part, write_json, write_part, write_table

MAX_HELD = 2_000_000
"""Held-out rows that the map and the skill are fitted on, about; more are a sample of users."""
BINS = 1 << 20
FACTORS = ("dispersion", "history", "llm")
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Counts:
    """What is counted over all parts before any pair is matched.

    Attributes:
        popularity: (I,) interactions of each item.
        moment: just after training.
        rates: (2, n_folds, I), see `gpl.rate_counts`.
        prior: see `PriorCounts`.
        n_held: exposures after the anchor cut with a known click, before test.
    """

    popularity: TimeArray
    moment: int
    rates: NDArray[np.float64]
    prior: PriorCounts
    n_held: int


def label_parts(
    parts: DatasetParts,
    embeddings: ItemEmbeddings,
    anchors: StoredAnchors,
    config: LabelConfig,
    seed: int,
    out: Path,
    work: Path,
    max_held: int = MAX_HELD,
) -> None:
    """Write the PseudoLabels of a dataset in parts into the folder ``out``, part by part.

    Args:
        parts: the dataset.
        embeddings: the frozen semantic space.
        anchors: of all its users.
        config: of the stage; `has_parts` says that it can be done so.
        seed: as of `prerank.labels.label.label`, which see.
        out: the artifact's folder.
        work: keeps what is matched; survives a kill, for this config, seed and inputs only.
        max_held: held-out rows to fit on, about.

    Raises:
        ConfigError, DataError: as of `label`.
    """
    require_fit(parts.n_users, len(parts.items), embeddings, anchors.n_users, anchors.dim)
    fold = folds_of_users(parts.n_users, config.n_folds, rng(seed, "labels", "folds"))
    wanted = _wanted(parts, config)
    beside = beside_logged(parts) if wanted == "logged" else "training"
    counts = _count(parts, fold, beside, config)
    n_unexposed, keep = _sample(parts, config, wanted, counts, seed)
    sampled = np.ones(parts.n_users, bool)
    if counts.n_held > max_held:
        share = max_held / counts.n_held
        sampled = rng(seed, "labels", "held-out").random(parts.n_users) < share
        log(f"label: the map is fitted on {share:.1%} of the users, {counts.n_held} rows in all")
    pooling = Pooling.of(config)
    found, held = _Found(), []
    rows = _pairs(parts, config, wanted, counts, seed)
    before = 0
    for p, (part, pairs) in enumerate(track(rows, "match", total=len(parts))):
        if keep is not None:
            mine = keep[np.searchsorted(keep, before) : np.searchsorted(keep, before + len(pairs))]
            before += len(pairs)
            pairs = pairs.take(mine - before + len(pairs))
        else:
            n_unexposed += len(pairs)
        first, end = int(parts.bounds[p]), int(parts.bounds[p + 1])
        file = work / f"match-{p:05d}.safetensors"
        columns = read_part(file)
        if columns is None:
            local, row = anchors.of_users(first, end)
            world = World(part, embeddings, local, pooling, fold[first:end])
            columns = _matched(world, pairs, config, sampled[first:end], first, row)
            write_part(file, columns)
        held.append({n: v for n, v in columns.items() if n.startswith("held_")})
        found.add(columns, RelevanceMap(config, None, {}).labelled(columns["relevance"]))
    rule = RelevanceMap.of(_held(held), config)
    prior, prior_source = prior_of(counts.prior, n_unexposed, config)
    shift = found.shift(rule, prior)
    mean = found.mean_weight(work, rule, config, len(parts))
    summary = Summary(config, n_unexposed, beside)
    for p in track(range(len(parts)), "label"):
        labels = _labels(work, p, rule, shift, found, mean, config)
        columns = labels.columns()
        summary.add(labels)
        write_table(part_file(out, "labels", p), columns)
    fit = {
        "match": config.match,
        "map": config.map,
        "confidence": config.confidence,
        "prior": prior,
        "prior_source": prior_source,
        **rule.fit(shift),
        **skill_of(_held(held), counts.rates, config),
        **summary.values(),
    }
    write_json(out / "labels.json", {"source": f"gpl/{anchors.source}", "fit": fit})


def _count(
    parts: DatasetParts, fold: NDArray[np.int32], beside: Beside, config: LabelConfig
) -> Counts:
    """Count all parts; nothing of them but sums is kept."""
    n_items = len(parts.items)
    popularity = np.zeros(n_items, np.int64)
    rates, prior = np.zeros((2, config.n_folds, n_items)), PriorCounts()
    n_held, last = 0, 0
    cut = parts.cuts.anchors or 0
    for p, part in enumerate(track(iter(parts), "count", total=len(parts))):
        rows = part.exposures
        mine = fold[int(parts.bounds[p]) : int(parts.bounds[p + 1])]
        popularity += interaction_counts(part)
        rates += rate_counts(part, mine, config.n_folds)
        prior += PriorCounts.of(part, beside)
        held = (rows.time >= cut) & (rows.split != TEST) & (rows.click != UNKNOWN_CLICK)
        n_held += int(held.sum())
        last = max(last, int(part.interactions.time.max(initial=0)))
    return Counts(popularity, earliest(last + 1, parts.cuts), rates, prior, n_held)


def _wanted(parts: DatasetParts, config: LabelConfig) -> str:
    """Return which pairs are labelled: logged, proposed or both."""
    if config.pairs in ("proposed", "both"):
        return config.pairs
    n = int(parts.scan("candidates").select(pl.len()).collect().item())
    is_logged = n > 0 and any(len(unexposed_pairs(part)) for part in parts)
    if config.pairs == "logged" and not is_logged:
        raise ConfigError(
            "there are no logged unexposed candidates",
            where="label.pairs",
            must="auto or proposed",
            got=config.pairs,
        )
    return "logged" if is_logged else "proposed"


def _pairs(
    parts: DatasetParts, config: LabelConfig, wanted: str, counts: Counts, seed: int
) -> Iterator[tuple[Dataset, UnexposedPairs]]:
    """Yield each part with its pairs; all together they are those of `label.choose_pairs`."""
    stream = rng(seed, "labels", "proposal")
    n, power = config.proposed_per_user, config.proposal_power
    for part in parts:
        if wanted == "logged":
            yield part, unexposed_pairs(part)
            continue
        drawn = propose_pairs(part, n, power, stream, counts.popularity, counts.moment)
        yield part, drawn if wanted == "proposed" else union(unexposed_pairs(part), drawn)


def _sample(
    parts: DatasetParts, config: LabelConfig, wanted: str, counts: Counts, seed: int
) -> tuple[int, TimeArray | None]:
    """Return how many pairs there are and which are kept; 0 and None where all are."""
    if config.max_pairs is None:
        return 0, None
    n = sum(len(pairs) for _, pairs in _pairs(parts, config, wanted, counts, seed))
    if n <= config.max_pairs:
        return 0, None
    kept = rng(seed, "labels", "sample").choice(n, size=config.max_pairs, replace=False)
    return n, np.sort(kept)


def _matched(
    world: World,
    pairs: UnexposedPairs,
    config: LabelConfig,
    sampled: NDArray[np.bool_],
    first_user: int,
    first_anchor: int,
) -> Columns:
    """Return a part's pairs with match and factors, and its held-out rows, as of the whole."""
    match = world.match(pairs.user, pairs.item)
    factors = factors_of_pairs(world, pairs, match, config)
    held = held_out(world, sampled)
    return {
        "user": pairs.user + np.int32(first_user),
        "item": pairs.item,
        "time": pairs.time,
        "relevance": match.relevance,
        "anchor": np.where(match.anchor >= 0, match.anchor + first_anchor, -1),
        **dict(zip(FACTORS, factors, strict=True)),
        "held_user": held.user + np.int32(first_user),
        "held_item": held.item,
        "held_click": held.click,
        "held_relevance": held.match.relevance,
        "held_fold": held.fold,
    }


def _held(parts: list[Columns]) -> HeldOut:
    """Return the held-out rows of all parts; their rows and anchors are not told."""
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    unknown = np.full(len(whole["held_user"]), -1, np.int64)
    return HeldOut(
        row=unknown,
        user=whole["held_user"],
        item=whole["held_item"],
        click=whole["held_click"],
        match=Match(whole["held_relevance"], unknown),
        fold=whole["held_fold"],
    )


class _Found:
    """What must be known of all matches before any label is."""

    def __init__(self) -> None:
        self.tables = {name: RankTable() for name in FACTORS}
        self._counts, self._sums = np.zeros(BINS, np.int64), np.zeros(BINS)

    def add(self, columns: Columns, labelled: NDArray[np.bool_]) -> None:
        """Count a part's pairs."""
        relevance = columns["relevance"][~np.isnan(columns["relevance"])].astype(np.float64)
        place = np.minimum(((relevance + 1) * (BINS / 2)).astype(np.int64), BINS - 1)
        self._counts += np.bincount(place, minlength=BINS)
        self._sums += np.bincount(place, relevance, minlength=BINS)
        for name, table in self.tables.items():
            table.add(columns[name][labelled])

    def shift(self, rule: RelevanceMap, prior: float | None) -> float:
        """Return the shift to ``prior``; pairs of one bin (2e-6 wide) count as their mean."""
        full = self._counts > 0
        if rule.curve is None or prior is None or not full.any():
            return 0.0
        mean = self._sums[full] / self._counts[full]
        return prior_shift(rule.curve.logits(mean), prior, self._counts[full])

    def weights(
        self, columns: Columns, labelled: NDArray[np.bool_], config: LabelConfig
    ) -> NDArray[np.float64]:
        """Return the weight of each labelled pair before it is divided by the mean."""
        used = (config.use_dispersion, config.use_history, config.use_llm)
        names = [name for name, use in zip(FACTORS, used, strict=True) if use]
        if config.confidence == "uniform":
            names = []
        ranks = [self.tables[name].ranks(columns[name][labelled]) for name in names]
        return weights(ranks, int(labelled.sum()), config.confidence_floor)

    def mean_weight(
        self, work: Path, rule: RelevanceMap, config: LabelConfig, n_parts: int
    ) -> float:
        """Return the mean of all weights."""
        total, n = 0.0, 0
        for p in range(n_parts):
            columns = _read(work, p)
            weight = self.weights(columns, rule.labelled(columns["relevance"]), config)
            total, n = total + float(weight.sum()), n + len(weight)
        return total / n if n else 1.0


def _read(work: Path, p: int) -> Columns:
    columns = read_part(work / f"match-{p:05d}.safetensors")
    assert columns is not None, "written a moment ago"
    return columns


def _labels(
    work: Path,
    p: int,
    rule: RelevanceMap,
    shift: float,
    found: _Found,
    mean: float,
    config: LabelConfig,
) -> PseudoLabels:
    """Return the labels of one part."""
    columns = _read(work, p)
    relevance = columns["relevance"]
    labelled = rule.labelled(relevance)
    confidence = np.zeros(len(relevance), np.float32)
    confidence[labelled] = found.weights(columns, labelled, config) / mean
    label = np.where(labelled, rule.labels(relevance, shift), 0).astype(np.float32)
    rest: dict[str, Any] = {n: v for n, v in columns.items() if not n.startswith("held_")}
    return PseudoLabels(**rest, label=label, confidence=confidence)
