"""Are the pseudo-labels right? They are held against the truth of unexposed pairs, where known.

Only experiments know it (a simulated world, or a log whose exposure was simulated); it is read
here and by the ceiling, never by training. The truth t of a pair may be a click (0 or 1) or its
probability, and every figure is the expected one over clicks drawn from t: a pair counts as a
clicked row of weight t and as a not clicked one of weight 1 - t.

    AUC = sum over i != j of t_i (1 - t_j) ([s_i > s_j] + [s_i = s_j] / 2)
          / sum over i != j of t_i (1 - t_j)

With clicks this is the usual AUC. Intervals come from a bootstrap over users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import UNLABELED, Dataset, PseudoLabels
from prerank.data.unexposed import exposure_counts, pair_keys
from prerank.evaluation.extra import AuditExtra, AuditPart, Bin
from prerank.evaluation.metrics import calibration_bins, expected_calibration_error
from prerank.evaluation.significance import (
    Interval,
    UserSums,
    bootstrap_intervals,
    user_sums,
)
from prerank.evaluation.summary import number

Values = NDArray[np.float64]
Rows = NDArray[np.int64]

DECILES, QUINTILES = 10, 5
RELIABILITY_BINS = 10
N_RESAMPLES = 1000
LEVEL = 0.95


def audit(labels: PseudoLabels, dataset: Dataset, seed: int) -> AuditExtra | None:
    """Hold pseudo-labels against the truth of their pairs.

    None where no truth is known, and for pairs without labels or with all labels equal.

    Args:
        labels: of unexposed pairs; those with confidence 0 abstain.
        dataset: its candidates hold the truth.
        seed: of the bootstrap over users.

    Returns:
        AUC, GAUC, calibration error and reliability of the labels, coverage, and the same by
        popularity decile (of the pairs, by training exposures of the item) and by confidence
        quintile; equal values share a part, so there may be fewer. The difference in AUC between
        the most and the least confident part says whether confidence predicts correctness.
    """
    truth = truth_of(dataset, labels.user, labels.item)
    known = ~np.isnan(truth)
    if not known.any() or labels.source == UNLABELED:
        return None
    kept = known & (labels.confidence > 0)
    if kept.any() and np.ptp(labels.label[kept]) == 0:
        return None  # negatives: nothing to be right about
    pairs = _Pairs(
        user=np.unique(labels.user[kept], return_inverse=True)[1].astype(np.int64),
        label=labels.label[kept].astype(np.float64),
        truth=truth[kept].astype(np.float64),
    )
    popularity = exposure_counts(dataset)[labels.item[known]].astype(np.float64)
    tenth = equal_parts(popularity, DECILES)
    tenth_of_kept = tenth[kept[known]]
    confidence = labels.confidence[kept].astype(np.float64)
    fifth = equal_parts(confidence, QUINTILES)

    whole = np.ones(len(pairs), dtype=np.bool_)
    parts = [whole, *_masks(tenth_of_kept, tenth.max()), *_masks(fifth, fifth.max(initial=-1))]
    measured = [_Measured.of(pairs, mine) for mine in parts]
    gain = _gain(measured[1 + int(tenth.max()) + 1 :])
    sums = [one for part in measured for one in (part.auc, part.gauc)] + ([gain] if gain else [])
    intervals = bootstrap_intervals(sums, N_RESAMPLES, LEVEL, seed)
    all_, *rest = [
        _describe(part, *intervals[2 * place : 2 * place + 2])
        for place, part in enumerate(measured)
    ]
    n_tenths = int(tenth.max()) + 1
    found: AuditExtra = {
        "n": int(known.sum()),
        "labelled": int(kept.sum()),
        "coverage": float(kept.sum() / known.sum()),
        "all": all_,
        "reliability": pairs.reliability(),
        "by_popularity": [
            {
                **about,
                "low": float(popularity[tenth == part].min()),
                "high": float(popularity[tenth == part].max()),
                "coverage": float(kept[known][tenth == part].mean()),
            }
            for part, about in enumerate(rest[:n_tenths])
        ],
        "by_confidence": [
            {
                **about,
                "low": float(confidence[fifth == part].min()),
                "high": float(confidence[fifth == part].max()),
            }
            for part, about in enumerate(rest[n_tenths:])
        ],
        "confidence_gain": None,
        "sentence": "",
    }
    if gain is not None and intervals[-1] is not None:
        low, high = intervals[-1]
        found["confidence_gain"] = {"value": float(gain.values()[0]), "low": low, "high": high}
    found["sentence"] = _sentence(found)
    return found


def _masks(part: Rows, last: int) -> list[NDArray[np.bool_]]:
    return [part == one for one in range(int(last) + 1)]


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Labelled pairs with a known truth: user (N,) dense, label (N,), truth (N,)."""

    user: Rows
    label: Values
    truth: Values

    def __len__(self) -> int:
        return len(self.user)

    @property
    def n_users(self) -> int:
        return int(self.user.max(initial=-1)) + 1

    def reliability(self) -> list[Bin]:
        bins = calibration_bins(self.label, self.truth, RELIABILITY_BINS)
        return [
            {"predicted": float(p), "clicked": float(c), "n": int(n)}
            for n, p, c in zip(*bins, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class _Measured:
    """The figures of some of the pairs, AUC and GAUC as sums over all users of the audit."""

    user: Rows
    label: Values
    truth: Values
    auc: UserSums
    gauc: UserSums

    @classmethod
    def of(cls, pairs: _Pairs, mine: NDArray[np.bool_]) -> _Measured:
        user, label, truth = pairs.user[mine], pairs.label[mine], pairs.truth[mine]
        n_users = pairs.n_users
        by_user = soft_auc(user, truth, label, n_users)
        return cls(
            user,
            label,
            truth,
            soft_auc_sums(user, truth, label, n_users),
            user_sums(by_user, np.arange(n_users), n_users),
        )


def _describe(part: _Measured, auc: Interval, gauc: Interval) -> AuditPart:
    has = len(part.user) > 0
    error = expected_calibration_error(part.label, part.truth, RELIABILITY_BINS)
    return {
        "n": len(part.user),
        "users": len(np.unique(part.user)),
        "mean_label": float(part.label.mean()) if has else None,
        "mean_truth": float(part.truth.mean()) if has else None,
        "auc": _value(part.auc),
        "auc_interval": _listed(auc),
        "gauc": _value(part.gauc),
        "gauc_interval": _listed(gauc),
        "ece": error if has else None,
    }


def _value(sums: UserSums) -> float | None:
    return float(sums.values()[0]) if sums.n else None


def _listed(interval: Interval) -> list[float] | None:
    return None if interval is None else list(interval)


def _gain(fifths: Sequence[_Measured]) -> UserSums | None:
    """Return AUC in the most confident part minus AUC in the least confident one."""
    if len(fifths) < 2 or not fifths[0].auc.n or not fifths[-1].auc.n:
        return None
    difference = _spread(fifths[-1].auc) - _spread(fifths[0].auc)
    return UserSums(difference, np.ones(difference.shape[1]))


def _spread(sums: UserSums) -> Values:
    """Return (1, U) values whose plain mean over all users is the statistic, with its variance.

    A user's A + U' IF_u over the U' users present becomes A + U IF_u over all U, the influence
    IF_u of the absent being 0; so two statistics over different users can be paired.
    """
    area, users, present = float(sums.values()[0]), len(sums.den), float(sums.den.sum())
    spread: Values = area + (sums.num - area * sums.den) * (users / present)
    return spread


def _sentence(found: AuditExtra) -> str:
    parts, gain = found["by_confidence"], found["confidence_gain"]
    if gain is None:
        return "Confidence is the same for all pairs, or too few are known: it predicts nothing."
    first, last = parts[0], parts[-1]
    gap, low, high = (number(gain[key], sign=True) for key in ("value", "low", "high"))
    figures = (
        f"AUC {last['auc']:.3f} in the most confident fifth against {first['auc']:.3f} in the "
        f"least confident: {gap} [{low}, {high}]"
    )
    if gain["low"] > 0:
        return f"Confidence predicts correctness: {figures}."
    if gain["high"] < 0:
        return f"Confidence predicts the opposite of correctness: {figures}."
    return f"Confidence does not tell right from wrong labels: {figures}."


@dataclass(frozen=True, eq=False)
class KnownTruth:
    """The pairs whose true click an experiment knows, sorted, to look many up.

    Attributes:
        keys: (N,) int64 ascending `pair_keys`; a pair may stand there twice.
        truth: (N,) float32.
    """

    keys: NDArray[np.int64]
    truth: NDArray[np.float32]

    @classmethod
    def of(cls, dataset: Dataset) -> KnownTruth:
        """Take the known pairs from the candidates."""
        rows = np.flatnonzero(~np.isnan(dataset.candidates.truth))
        keys = pair_keys(dataset.candidates.user[rows], dataset.candidates.item[rows])
        order = np.argsort(keys, kind="stable")
        return cls(keys[order], dataset.candidates.truth[rows[order]])

    def look_up(self, user: NDArray[Any], item: NDArray[Any]) -> NDArray[np.float32]:
        """Return the true click of each pair, (N,) float32, NaN where unknown."""
        if not len(self.keys):
            return np.full(len(user), np.nan, dtype=np.float32)
        wanted = pair_keys(user.astype(np.int32), item.astype(np.int32))
        place = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        found = self.truth[place]
        return np.where(self.keys[place] == wanted, found, np.float32(np.nan)).astype(np.float32)


def truth_of(dataset: Dataset, user: NDArray[Any], item: NDArray[Any]) -> NDArray[np.float32]:
    """Return the true click of each pair from the candidates, (N,) float32, NaN if unknown."""
    return KnownTruth.of(dataset).look_up(user, item)


def equal_parts(value: Values, n_parts: int) -> Rows:
    """Return the part of each value, (N,) int64: 0 the lowest of at most ``n_parts`` equal ones.

    The edges are quantiles; equal values always share a part, and no part is empty.
    """
    if not len(value):
        return np.zeros(0, dtype=np.int64)
    edges = np.quantile(value, np.arange(1, n_parts) / n_parts)
    part = np.searchsorted(edges, value, side="left")
    dense: Rows = np.unique(part, return_inverse=True)[1].astype(np.int64)
    return dense


def _neighbours(
    group: Rows, truth: Values, score: Values, n_groups: int
) -> tuple[Values, Values, Values, Values, Values]:
    """Return, for every row, what lies below and above it in its group.

    Returns:
        below: (N,) weight of not clicked rows it beats (ties half, itself left out).
        above: (N,) weight of clicked rows that beat it (likewise).
        others_not, others_clicked: (N,) those weights over all other rows of the group.
        pairs: (G,) sum over i != j of t_i (1 - t_j).
    """
    n, order = len(group), np.lexsort((score, group))
    g, t, s = group[order], truth[order], score[order]
    start = np.flatnonzero(np.append(True, (g[1:] != g[:-1]) | (s[1:] != s[:-1])))
    run = np.repeat(np.arange(len(start)), np.diff(start, append=n))
    clicked_G = _sums(g, t, n_groups)
    not_G = _sums(g, 1 - t, n_groups)
    clicked_R, not_R = np.add.reduceat(t, start), np.add.reduceat(1 - t, start)
    before_clicked_G = np.cumsum(clicked_G) - clicked_G
    before_not_G = np.cumsum(not_G) - not_G
    of_run = g[start]
    clicked_below_R = np.cumsum(clicked_R) - clicked_R - before_clicked_G[of_run]
    not_below_R = np.cumsum(not_R) - not_R - before_not_G[of_run]
    clicked_above_R = clicked_G[of_run] - clicked_below_R - clicked_R
    below = not_below_R[run] + (not_R[run] - (1 - t)) / 2
    above = clicked_above_R[run] + (clicked_R[run] - t) / 2
    back = np.empty(n, dtype=np.int64)
    back[order] = np.arange(n)
    pairs = clicked_G * not_G - _sums(g, t * (1 - t), n_groups)
    return below[back], above[back], not_G[group] - (1 - truth), clicked_G[group] - truth, pairs


def _sums(group: Rows, weight: Values, n_groups: int) -> Values:
    sums: Values = np.bincount(group, weights=weight, minlength=n_groups).astype(np.float64)
    return sums


def soft_auc(user: Rows, truth: Values, score: Values, n_users: int) -> Values:
    """Return the AUC of each user under a soft truth, (U,) float64, NaN without both classes.

    Args:
        user: (N,) integers in [0, n_users).
        truth: (N,) in [0, 1].
        score: (N,) finite.
        n_users: U.
    """
    values = np.full(n_users, np.nan)
    if not len(user):
        return values
    below, _, _, _, pairs = _neighbours(user, truth, score, n_users)
    won = _sums(user, truth * below, n_users)
    # Sums of many floats: a user without both classes may be left with a rest of rounding.
    np.divide(won, pairs, out=values, where=pairs > 1e-9)
    return values


def soft_auc_sums(user: Rows, truth: Values, score: Values, n_users: int) -> UserSums:
    """Return the AUC over all rows under a soft truth as user sums (see `significance.auc_sums`).

    User u moves the AUC A by IF_u = sum over its rows i of
    (t_i b_i + (1 - t_i) a_i - A (t_i N_i + (1 - t_i) P_i)) / pairs, with b_i the weight of not
    clicked others below i, a_i that of clicked others above it, and N_i, P_i those of all others.

    Returns:
        UserSums with num (1, U); all zero where a class is absent.
    """
    if len(user):
        whole = np.zeros(len(user), dtype=np.int64)
        below, above, others_not, others_clicked, pairs = _neighbours(whole, truth, score, 1)
    if not len(user) or pairs[0] <= 1e-9:
        return UserSums(np.zeros((1, n_users)), np.zeros(n_users))
    area = float((truth * below).sum() / pairs[0])
    won = truth * below + (1 - truth) * above
    lost = truth * others_not + (1 - truth) * others_clicked
    influence = _sums(user, (won - area * lost) / pairs[0], n_users)
    present = (np.bincount(user, minlength=n_users) > 0).astype(np.float64)
    return UserSums((present * (area + present.sum() * influence))[None, :], present)
