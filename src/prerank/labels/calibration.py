"""From relevance to label: a rising curve fitted on held-out exposed clicks, then shifted.

Source: method.md stage 5. All of it is C (our choice): the paper's map is unknown, and a cosine
is not a click rate. The exposed click rate is not that of the unexposed pairs either, hence the
shift in logit space to a stated mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from prerank.artifacts import TEST, TRAIN, VALIDATION, Dataset, FloatArray, IntArray, TimeArray
from prerank.data.auc import grouped_auc
from prerank.data.history import anchor_ends
from prerank.data.unexposed import (
    Beside,
    contains,
    pair_keys,
    recalled_exposures,
    sorted_unique,
)
from prerank.errors import DataError

DoubleArray = NDArray[np.float64]
MAX_KNOTS = 64
LEAST_RATE = 1e-3
"""Fitted rates stay this far from 0 and 1, so that their logits can be shifted."""
OBSERVED = "observed clicks over exposed and unexposed pairs"
"""How a prior is known where no propensities were logged."""
LEAST_PROPENSITY = 0.01
"""Exposure propensities below this are taken for this: one row must not decide a prior."""
FLAT = 1e-9
ONE_SIDED_95 = 1.645


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A rising curve from score to label: straight lines between knots in logit space.

    Attributes:
        score: (K,) float64 ascending; scores outside take the value of the nearest end.
        logit: (K,) float64, not falling.
    """

    score: DoubleArray
    logit: DoubleArray

    def logits(self, score: NDArray[np.floating]) -> DoubleArray:
        """Return the logit of the label of each score, (N,) float64."""
        return np.interp(score.astype(np.float64), self.score, self.logit)

    def knots(self, shift: float) -> list[list[float]]:
        """Return [score, label] pairs after adding ``shift`` to the logits, to draw the map."""
        label = expit(self.logit + shift)
        pairs = zip(self.score, label, strict=True)
        return [[round(float(s), 6), round(float(y), 6)] for s, y in pairs]


def held_out_rows(dataset: Dataset) -> TimeArray:
    """Return the exposure rows whose click the anchors cannot have seen, ascending.

    Those are the validation exposures and, where anchors stop at a moment in UTC
    (``cuts.anchors``), also the training exposures from that moment on. Unknown clicks and pairs
    that stand in the anchors' own history are left out.
    """
    rows = dataset.exposures
    held = rows.split == VALIDATION
    if dataset.time_unit == "ms" and dataset.cuts.anchors is not None:
        held |= (rows.split == TRAIN) & (rows.time >= dataset.cuts.anchors)
    past = dataset.interactions
    visible = np.arange(len(past)) < anchor_ends(dataset)[past.user]
    known = sorted_unique(pair_keys(past.user[visible], past.item[visible]))
    held &= (rows.click >= 0) & ~contains(known, pair_keys(rows.user, rows.item))
    return np.flatnonzero(held).astype(np.int64)


def fit_map(
    score: FloatArray, click: NDArray[np.int8], calibrator: Literal["isotonic", "logistic"]
) -> LabelMap:
    """Fit click on score by a curve that cannot fall.

    Args:
        score: (N,) float32, finite.
        click: (N,) int8 in {0, 1}, both present.
        calibrator: ``isotonic`` (thinned to at most 64 knots at quantiles of the score) or
            ``logistic`` (a straight line in logit space; a negative slope becomes flat).

    Raises:
        DataError: if clicks of both kinds are not there.
    """
    if len(np.unique(click)) < 2:
        raise DataError(
            "the label map cannot be fitted on the held-out exposures",
            where="exposures",
            must="rows with and without a click, unseen by the anchors, of users with anchors",
            got=f"{len(click)} rows, {int((click == 1).sum())} clicks",
            hint="hold out more exposures for validation, or use map = 'linear'",
        )
    if calibrator == "logistic":
        return _logistic(score, click)
    curve = IsotonicRegression(increasing=True, out_of_bounds="clip")
    curve.fit(score.astype(np.float64), click)
    knots = np.unique(np.quantile(score.astype(np.float64), np.linspace(0, 1, MAX_KNOTS)))
    rate = np.clip(curve.predict(knots), LEAST_RATE, 1 - LEAST_RATE)
    return LabelMap(knots, np.maximum.accumulate(logit(rate)))


def _logistic(score: FloatArray, click: NDArray[np.int8]) -> LabelMap:
    ends = np.array([score.min(), max(score.max(), score.min() + FLAT)], dtype=np.float64)
    model = LogisticRegression(C=1e6).fit(score[:, None].astype(np.float64), click)
    slope = float(model.coef_[0, 0])
    if slope <= 0:
        return LabelMap(ends, np.full(2, logit(click.mean())))
    return LabelMap(ends, slope * ends + float(model.intercept_[0]))


def prior_shift(
    logits: DoubleArray, prior: float, weight: NDArray[np.integer] | None = None
) -> float:
    """Return the d for which mean(sigmoid(logits + d)) equals ``prior``, in (0, 1).

    ``weight``: how many times each logit counts; None: once.
    """
    target = float(logit(prior))
    low, high = target - float(logits.max()), target - float(logits.min())
    if high - low < FLAT:
        return low

    def excess(shift: float) -> float:
        label = expit(logits + shift)
        mean = label.mean() if weight is None else (label * weight).sum() / weight.sum()
        return float(mean) - prior

    return float(brentq(excess, low - FLAT, high + FLAT, xtol=1e-12, rtol=1e-12))


@dataclass(frozen=True)
class PriorCounts:
    """What the prior is estimated from; those of parts add up to those of the whole.

    Attributes:
        exposed, clicks: exposures before test with a known click, and the clicked ones of them.
        pairs, clicked_pairs: distinct pairs of D_e (`recalled_exposures`), and those clicked.
        known: training exposures with a known click.
        unlogged: those of them without a propensity.
        uncertain: those of them with a propensity below 1.
        odds, clicked_odds: sums of (1 - e) / e over them, and over the clicked ones.
    """

    exposed: int = 0
    clicks: int = 0
    pairs: int = 0
    clicked_pairs: int = 0
    known: int = 0
    unlogged: int = 0
    uncertain: int = 0
    odds: float = 0.0
    clicked_odds: float = 0.0

    @classmethod
    def of(cls, dataset: Dataset, beside: Beside) -> PriorCounts:
        """Count a dataset, or a part of one; ``beside`` says which exposures are D_e."""
        rows = dataset.exposures
        shown = (rows.split != TEST) & (rows.click >= 0)
        train = shown & (rows.split == TRAIN)
        click = rows.click[train].astype(np.float64)
        propensity = np.maximum(rows.propensity[train].astype(np.float64), LEAST_PROPENSITY)
        odds = (1 - propensity) / propensity
        recalled = recalled_exposures(dataset, beside)
        key = pair_keys(rows.user, rows.item)
        return cls(
            exposed=int(shown.sum()),
            clicks=int((rows.click[shown] == 1).sum()),
            pairs=len(sorted_unique(key[recalled])),
            clicked_pairs=len(sorted_unique(key[recalled & (rows.click == 1)])),
            known=len(click),
            unlogged=int(np.isnan(propensity).sum()),
            uncertain=int((propensity < 1).sum()),
            odds=float(odds.sum()),
            clicked_odds=float((click * odds).sum()),
        )

    def __add__(self, other: PriorCounts) -> PriorCounts:
        sums = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return PriorCounts(**sums)

    def prior(self, n_unexposed: int) -> tuple[float, str]:
        """Return the estimate of `stated_prior`."""
        if self.known and not self.unlogged and self.uncertain:
            rate, how = self.clicked_odds / self.odds, "inverse propensity"
        else:
            rate = self.clicked_pairs / max(self.pairs + n_unexposed, 1)
            how = OBSERVED
        return float(np.clip(rate, LEAST_RATE, 1 - LEAST_RATE)), how

    def exposed_rate(self) -> tuple[float, str]:
        """Return the click rate of exposures and its name."""
        rate = self.clicks / max(self.exposed, 1)
        return float(np.clip(rate, LEAST_RATE, 1 - LEAST_RATE)), "click rate of exposures"


def stated_prior(counts: PriorCounts, n_unexposed: int, prior: float | str) -> tuple[float, str]:
    """Return the mean click over the unexposed pairs as ``label.prior`` says, and how it is known.

    A number is taken as it is. ``exposed``: the click rate of exposures, as if having been passed
    over said nothing. Otherwise an estimate without their truth.

    With logged propensities e of all training exposures (C): inverse-propensity extrapolation,
    sum y (1 - e) / e over sum (1 - e) / e, consistent where exposure depends on what was logged
    and e is at least ``LEAST_PROPENSITY``, below which a row counts as if it were that.
    Without (C): clicked pairs over all recalled pairs of the same time, exposed or not, each pair
    once. That is the rate at which a recalled pair is both exposed and clicked, a cautious value
    below the true click rate. Where pairs were drawn and not logged, the drawn ones stand for the
    recalled ones: the more are drawn (``proposed_per_user``), the lower it is, so state a prior
    there where you can.

    Returns:
        The prior, strictly between 0 and 1, and its name for the report.
    """
    if isinstance(prior, float):
        return prior, "given"
    return counts.exposed_rate() if prior == "exposed" else counts.prior(n_unexposed)


def skill(user: IntArray, click: NDArray[np.int8], score: NDArray[np.floating]) -> dict[str, Any]:
    """Say how well a score orders each user's held-out clicks (C, ours).

    skill = 2 GAUC - 1 over users with both kinds of rows (0: no better than chance, 1: perfect);
    low = skill - 1.645 standard errors over users, the one-sided 95 % bound.
    """
    values, _ = grouped_auc(user, click, score)
    auc = values[~np.isnan(values)]
    both = 0 < int((click == 1).sum()) < len(click)
    found: dict[str, Any] = {
        "n_rows": len(click),
        "n_clicks": int((click == 1).sum()),
        "n_users": len(auc),
        "auc": float(roc_auc_score(click, score)) if both else None,
        "gauc": float(auc.mean()) if len(auc) else None,
        "skill": None,
        "skill_low": None,
    }
    if len(auc) > 1:
        value = 2 * float(auc.mean()) - 1
        error = 2 * float(auc.std(ddof=1)) / len(auc) ** 0.5
        found |= {"skill": value, "skill_low": value - ONE_SIDED_95 * error}
    return found


def weight_factor(skill_low: float | None, full_skill: float) -> float:
    """Return clip(skill_low / full_skill, 0, 1) ** 2, the factor on all pseudo-labels' weight (C).

    Squared because a skill is a correlation (Somers' D), and what a label tells goes with the
    square of its correlation. No evidence of skill (too few users, or a bound at or below 0) gives
    0: do no harm.
    """
    return 0.0 if skill_low is None else float(np.clip(skill_low / full_skill, 0, 1)) ** 2


def folds_of_users(n_users: int, n_folds: int, rng: np.random.Generator) -> IntArray:
    """Return (U,) int32: a fold for each user, sizes equal but for one."""
    return rng.permutation(np.arange(n_users) % n_folds).astype(np.int32)


def counts_by_fold(dataset: Dataset, rows: TimeArray, fold: IntArray, n_folds: int) -> DoubleArray:
    """Return (n_folds, I): how many of the exposures ``rows`` are of each fold's users and item."""
    table, n_items = dataset.exposures, len(dataset.items)
    cell = fold[table.user[rows]] * np.int64(n_items) + table.item[rows]
    counts = np.bincount(cell, minlength=n_folds * n_items).astype(np.float64)
    return counts.reshape(n_folds, n_items)


def cross_fitted(
    score: FloatArray,
    click: NDArray[np.int8],
    fold: IntArray,
    calibrator: Literal["isotonic", "logistic"],
) -> DoubleArray:
    """Return each row's label from a map fitted on the other folds, (N,) float64.

    Rows whose other folds lack one kind of click get NaN.
    """
    label = np.full(len(score), np.nan)
    for k in np.unique(fold):
        inside = fold == k
        if len(np.unique(click[~inside])) == 2:
            curve = fit_map(score[~inside], click[~inside], calibrator)
            label[inside] = expit(curve.logits(score[inside]))
    return label


def reliability(label: DoubleArray, click: NDArray[np.int8], n_bins: int = 10) -> list[list[float]]:
    """Return [mean label, click rate, rows] of bins of about equal size, by rising label."""
    known = ~np.isnan(label)
    order = np.argsort(label[known], kind="stable")
    label, click = label[known][order], click[known][order]
    parts = np.array_split(np.arange(len(label)), min(n_bins, max(len(label), 1)))
    return [
        [float(label[part].mean()), float(click[part].mean()), len(part)]
        for part in parts
        if len(part)
    ]


def brier_skill(label: DoubleArray, click: NDArray[np.int8]) -> float | None:
    """Return 1 - Brier score over that of the constant click rate; None where undefined."""
    known = ~np.isnan(label)
    label, click = label[known], click[known]
    if not len(click) or click.min() == click.max():
        return None
    constant = float(((click - click.mean()) ** 2).mean())
    return 1 - float(((click - label) ** 2).mean()) / constant
