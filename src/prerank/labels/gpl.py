"""Labels from interest anchors: match, map to a label, weigh by confidence (GPL itself)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from prerank.artifacts import (
    TEST,
    VALIDATION,
    Dataset,
    FloatArray,
    IntArray,
    InterestAnchors,
    ItemEmbeddings,
    PseudoLabels,
    TimeArray,
)
from prerank.data.unexposed import UnexposedPairs
from prerank.labels.calibration import (
    DoubleArray,
    LabelMap,
    PriorCounts,
    brier_skill,
    counts_by_fold,
    cross_fitted,
    fit_map,
    folds_of_users,
    held_out_rows,
    prior_shift,
    reliability,
    skill,
    stated_prior,
    weight_factor,
)
from prerank.labels.chosen import Chosen
from prerank.labels.confidence import combine, factors, of_pairs
from prerank.labels.config import LabelConfig
from prerank.labels.joint import (
    Space,
    exposures_elsewhere,
    joint_scores,
    similarities,
)
from prerank.labels.matching import Match, Pooling, match_pairs
from prerank.labels.teacher import ScorePairs
from prerank.seeds import rng
from prerank.spread import Spread, here

RATE_SMOOTHING = 5.0
"""Exposures at the mean click rate added to each item's own, for the reference score."""


@dataclass(frozen=True, eq=False)
class World:
    """What every step below reads.

    Attributes:
        dataset, embeddings, anchors: the artifacts.
        pooling: how cosines become a relevance.
        fold: (U,) int32 fold of each user.
        spread: where pairs are matched.
    """

    dataset: Dataset
    embeddings: ItemEmbeddings
    anchors: InterestAnchors
    pooling: Pooling
    fold: IntArray
    spread: Spread = here

    def match(self, user: IntArray, item: IntArray) -> Match:
        """Return the match of pairs (N,) with the anchors of their users."""
        return match_pairs(user, item, self.embeddings, self.anchors, self.pooling, self.spread)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Exposed rows that the anchors have not seen and that have a relevance.

    Attributes:
        row: (M,) int64 rows of the exposures.
        user, item: (M,) int32.
        click: (M,) int8 in {0, 1}.
        match: relevance and nearest anchor.
        fold: (M,) int32 user fold.
    """

    row: TimeArray
    user: IntArray
    item: IntArray
    click: NDArray[np.int8]
    match: Match
    fold: IntArray

    def only(self, keep: NDArray[np.bool_]) -> HeldOut:
        """Return the rows where ``keep`` (M,) holds."""
        match = Match(self.match.relevance[keep], self.match.anchor[keep])
        return HeldOut(
            row=self.row[keep],
            user=self.user[keep],
            item=self.item[keep],
            click=self.click[keep],
            match=match,
            fold=self.fold[keep],
        )


@dataclass(frozen=True, eq=False)
class Mapped:
    """Labels before weighting.

    Attributes:
        label: (N,) float64 in [0, 1]; any value where ``labelled`` is False.
        labelled: (N,) bool; False = abstain.
        fit: what was fitted, plain JSON values.
    """

    label: DoubleArray
    labelled: NDArray[np.bool_]
    fit: dict[str, Any]


def gpl_labels(
    dataset: Dataset,
    embeddings: ItemEmbeddings,
    anchors: InterestAnchors,
    chosen: Chosen,
    config: LabelConfig,
    seed: int,
    teacher: ScorePairs | None = None,
    spread: Spread = here,
) -> PseudoLabels:
    """Label the chosen pairs by their match with the anchors of their user.

    Args:
        dataset: for the held-out exposures and the histories.
        embeddings: the frozen semantic space.
        anchors: of all users of the dataset.
        chosen: the pairs.
        config: of the label stage.
        seed: of the user folds.
        teacher: scores pairs, for the joint map; it must not have seen the validation exposures.
        spread: where pairs are matched.

    Raises:
        DataError: if the label map cannot be fitted.
    """
    world = World(
        dataset=dataset,
        embeddings=embeddings,
        anchors=anchors,
        pooling=Pooling.of(config),
        fold=folds_of_users(len(dataset.users), config.n_folds, rng(seed, "labels", "folds")),
        spread=spread,
    )
    pairs = chosen.pairs
    match = world.match(pairs.user, pairs.item)
    held = held_out(world)
    counts = PriorCounts.of(dataset, chosen.beside)
    prior, prior_source = prior_of(counts, chosen.n_unexposed, config)
    parts = factors_of_pairs(world, pairs, match, config)
    if config.map == "joint":
        stream = rng(seed, "labels", "joint")
        sizes = counts.pairs, chosen.n_unexposed
        mapped = _joint(world, pairs, sizes, match, held, prior, config, stream, teacher)
    else:
        mapped = _by_relevance(match, held, prior, config)
    confidence = combine(
        tuple(
            part
            for part, used in zip(
                parts, (config.use_dispersion, config.use_history, config.use_llm), strict=True
            )
            if used and config.confidence != "uniform"
        ),
        mapped.labelled,
        config.confidence_floor,
    )
    label = np.where(mapped.labelled, mapped.label, 0).astype(np.float32)
    return PseudoLabels(
        user=pairs.user,
        item=pairs.item,
        time=pairs.time,
        label=label,
        confidence=confidence,
        relevance=match.relevance,
        anchor=match.anchor,
        dispersion=parts[0],
        history=parts[1],
        llm=parts[2],
        source=f"gpl/{anchors.source}",
        fit={
            "match": config.match,
            "map": config.map,
            "confidence": config.confidence,
            "prior": prior,
            "prior_source": prior_source,
            **mapped.fit,
            **_skill(world, held, config),
        },
    )


def held_out(world: World, users: NDArray[np.bool_] | None = None) -> HeldOut:
    """Return the held-out rows that have a relevance; only of ``users`` (U,) bool, if given."""
    exposures = world.dataset.exposures
    rows = held_out_rows(world.dataset)
    if users is not None:
        rows = rows[users[exposures.user[rows]]]
    user, item, click = exposures.user[rows], exposures.item[rows], exposures.click[rows]
    match = world.match(user, item)
    return HeldOut(rows, user, item, click, match, world.fold[user]).only(match.anchor >= 0)


def prior_of(
    counts: PriorCounts, n_unexposed: int, config: LabelConfig
) -> tuple[float | None, str]:
    """Return the mean that labels are shifted to, None if they are not, and where it is from."""
    if not config.reads_prior:
        return None, "kept"
    return stated_prior(counts, n_unexposed, config.prior)


def factors_of_pairs(
    world: World, pairs: UnexposedPairs, match: Match, config: LabelConfig
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return dispersion, history and llm of each pair, (N,) float32."""
    found = factors(world.dataset, world.embeddings, world.anchors, config.history_length)
    by = "user" if config.confidence == "user" else "pair"
    return of_pairs(found, world.anchors, pairs.user, match.anchor, by)


@dataclass(frozen=True, eq=False)
class RelevanceMap:
    """How a relevance becomes a label.

    Attributes:
        config: of the label stage; its map is not ``joint``.
        curve: fitted on held-out rows; None where nothing is fitted.
        about: of the fit, plain JSON values.
    """

    config: LabelConfig
    curve: LabelMap | None
    about: dict[str, Any]

    @classmethod
    def of(cls, held: HeldOut, config: LabelConfig) -> RelevanceMap:
        """Fit the map on held-out rows."""
        if config.map in ("linear", "two-threshold"):
            return cls(config, None, {})
        score = held.match.relevance
        curve = fit_map(score, held.click, config.calibrator)
        cross = cross_fitted(score, held.click, held.fold, config.calibrator)
        about = {
            "reliability": reliability(cross, held.click),
            "brier_skill": brier_skill(cross, held.click),
        }
        return cls(config, curve, about)

    def labelled(self, relevance: FloatArray) -> NDArray[np.bool_]:
        """Say which pairs get a label; those that match nothing (NaN) abstain."""
        matched = ~np.isnan(relevance)
        if self.config.map != "two-threshold":
            return matched
        return matched & ((relevance >= self.config.high) | (relevance <= self.config.low))

    def labels(self, relevance: FloatArray, shift: float) -> DoubleArray:
        """Return the label of each relevance, (N,) float64; of NaN that of 0."""
        known = np.where(np.isnan(relevance), 0, relevance).astype(np.float32)
        low, high = self.config.low, self.config.high
        if self.config.map == "linear":
            share = np.clip((known - low) / (high - low), 0, 1)
            return np.asarray(share, dtype=np.float64)
        if self.config.map == "two-threshold":
            return (known >= high).astype(np.float64)
        assert self.curve is not None
        return np.asarray(expit(self.curve.logits(known) + shift))

    def fit(self, shift: float) -> dict[str, Any]:
        """Return what was fitted, plain JSON values."""
        low, high = self.config.low, self.config.high
        if self.config.map == "linear":
            return {"knots": [[low, 0.0], [high, 1.0]]}
        if self.config.map == "two-threshold":
            return {"knots": [[low, 0.0], [low, 0.5], [high, 0.5], [high, 1.0]]}
        assert self.curve is not None
        return {
            "calibrator": self.config.calibrator,
            "shift": shift,
            "knots": self.curve.knots(shift),
            "knots_unshifted": self.curve.knots(0.0),
            **self.about,
        }


def _by_relevance(match: Match, held: HeldOut, prior: float | None, config: LabelConfig) -> Mapped:
    rule, matched = RelevanceMap.of(held, config), match.anchor >= 0
    relevance = np.where(matched, match.relevance, np.float32(np.nan))
    shift = 0.0
    if rule.curve is not None:
        shift = _shift(rule.curve.logits(relevance[matched]), prior)
    return Mapped(rule.labels(relevance, shift), rule.labelled(relevance), rule.fit(shift))


def _shift(logits: DoubleArray, prior: float | None) -> float:
    return 0.0 if prior is None or not len(logits) else prior_shift(logits, prior)


def _joint(
    world: World,
    pairs: UnexposedPairs,
    sizes: tuple[int, int],
    match: Match,
    held: HeldOut,
    prior: float | None,
    config: LabelConfig,
    stream: np.random.Generator,
    teacher: ScorePairs | None,
) -> Mapped:
    matched = match.anchor >= 0
    dataset = world.dataset
    if teacher is not None:
        # A ranker speaks too well of the rows that it was trained on.
        held = held.only(dataset.exposures.split[held.row] == VALIDATION)

    elsewhere_FI = exposures_elsewhere(dataset, world.fold, config.n_folds)

    def space(user: IntArray, item: IntArray, time: TimeArray) -> Space:
        rising = [similarities(user, item, world.embeddings, world.anchors, world.pooling)]
        rising += [teacher(user, item, time)[:, None]] if teacher is not None else []
        near_NS = np.hstack(rising)
        seen = np.log1p(elsewhere_FI[world.fold[user], item])
        features = np.column_stack([near_NS, seen]).astype(np.float32)
        return Space(features, user, near_NS.shape[1])

    held_logits, logits = joint_scores(
        space(held.user, held.item, dataset.exposures.time[held.row]),
        held.click,
        space(pairs.user[matched], pairs.item[matched], pairs.time[matched]),
        world.fold,
        config.joint_correction,
        *sizes,
        stream,
    )
    shift = _shift(logits, prior)
    label = np.zeros(len(pairs))
    label[matched] = expit(logits + shift)
    fit = {
        "shift": shift,
        "joint_correction": config.joint_correction,
        "joint_skill": skill(held.user, held.click, held_logits),
    }
    return Mapped(label, matched, fit)


def _skill(world: World, held: HeldOut, config: LabelConfig) -> dict[str, Any]:
    return skill_of(held, rate_counts(world.dataset, world.fold, config.n_folds), config)


def skill_of(held: HeldOut, counts: NDArray[np.float64], config: LabelConfig) -> dict[str, Any]:
    """Measure the relevance's skill against that of the item click rate; set the weight factor.

    The relevance, also under the joint map: what popularity adds there, the exposed log already
    tells the pre-ranker, and it is no evidence that interest tells anything.
    """
    own = skill(held.user, held.click, held.match.relevance)
    reference = skill(held.user, held.click, item_rate(counts, held))
    enough = max(reference["skill"] or 0.0, config.full_skill)
    factor = weight_factor(own["skill_low"], enough) if config.skill_weight else 1.0
    return {"skill": own, "reference_skill": reference, "pseudo_weight_factor": factor}


def rate_counts(dataset: Dataset, fold: IntArray, n_folds: int) -> NDArray[np.float64]:
    """Return (2, n_folds, I): exposures and clicks before test, of each fold's users and item."""
    rows = dataset.exposures
    known = np.flatnonzero((rows.split != TEST) & (rows.click >= 0))
    clicked = known[rows.click[known] == 1]
    return np.stack([counts_by_fold(dataset, some, fold, n_folds) for some in (known, clicked)])


def item_rate(counts: NDArray[np.float64], held: HeldOut) -> DoubleArray:
    """Return the smoothed click rate of each held-out row's item among users of other folds.

    What the exposed clicks say without any interest: the reference that a label must match.
    """
    shown, clicks = counts
    other_shown, other_clicks = shown.sum(axis=0) - shown, clicks.sum(axis=0) - clicks
    mean = clicks.sum() / max(shown.sum(), 1)
    rate = (other_clicks + RATE_SMOOTHING * mean) / (other_shown + RATE_SMOOTHING)
    return np.asarray(rate[held.fold, held.item], dtype=np.float64)
