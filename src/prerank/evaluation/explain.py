"""Parts of a report page that need the artifacts of the stages before: labels, anchors, users."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import Dataset, InterestAnchors, ItemEmbeddings, PseudoLabels
from prerank.data.history import anchor_ends, last_items
from prerank.data.unexposed import exposure_counts
from prerank.evaluation.audit import DECILES, QUINTILES, Values, equal_parts, truth_of
from prerank.evaluation.extra import (
    AnchorExtra,
    Bin,
    LabelExtra,
    LabelPart,
    SkillExtra,
    UserAnchor,
    UserExtra,
    UserLabel,
)
from prerank.evaluation.metrics import calibration_bins
from prerank.seeds import rng

HISTOGRAM_BINS = 20
RELIABILITY_BINS = 10
N_HISTORY, N_ANCHORS, N_LABELS = 10, 8, 6
LIFTED = ("knots", "knots_unshifted", "reliability", "label_histogram", "relevance_histogram")
ITEM_CELLS = 1_000_000  # anchors x items compared at once
FIRST_BLOCK = 4096  # small: all of it is sorted, later blocks are mostly skipped


def describe_labels(labels: PseudoLabels, dataset: Dataset) -> LabelExtra:
    """Return histogram, reliability and fit of a label artifact, for ``extra["labels"]``.

    Reliability compares with the truth of the unexposed candidates where an experiment knows it,
    else it is the label stage's own, on held-out exposures.
    """
    kept = labels.confidence > 0
    label = labels.label[kept].astype(np.float64)
    counts, edges = np.histogram(label, HISTOGRAM_BINS, (0, 1))
    about: LabelExtra = {
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        "n": len(labels),
        "abstained": int((~kept).sum()),
        "fit": {key: value for key, value in labels.fit.items() if key not in LIFTED},
    }
    if len(label):
        about["mean"] = float(np.average(label, weights=labels.confidence[kept]))
        confidence = labels.confidence[kept].astype(np.float64)
        popularity = exposure_counts(dataset)[labels.item[kept]].astype(np.float64)
        about["by_popularity"] = _parts(popularity, DECILES, label, confidence)
        about["by_confidence"] = _parts(confidence, QUINTILES, label, confidence)
    if labels.fit.get("knots"):
        about["knots"] = labels.fit["knots"]
    truth = truth_of(dataset, labels.user[kept], labels.item[kept])
    known = ~np.isnan(truth)
    if known.any():
        bins = calibration_bins(label[known], truth[known], RELIABILITY_BINS)
        about["reliability"] = [_bin(p, c, n) for n, p, c in zip(*bins, strict=True)]
        about["reliability_on"] = "true clicks of the unexposed pairs"
    elif labels.fit.get("reliability"):
        about["reliability"] = [_bin(*row) for row in labels.fit["reliability"]]
        about["reliability_on"] = "held-out exposures, before the shift to the prior"
    return about


def skill_of(labels: PseudoLabels) -> SkillExtra:
    """Return the skill that the label stage measured, for ``extra["unearned"]``."""
    about = labels.fit.get("skill", {})
    return {"skill": about.get("skill"), "skill_low": about.get("skill_low")}


def _parts(by: Values, n_parts: int, label: Values, confidence: Values) -> list[LabelPart]:
    """Return what the labels are in equal parts of ``by``, lowest first."""
    part = equal_parts(by, n_parts)
    count = np.bincount(part)
    labels, sure = (np.bincount(part, weights=of) / count for of in (label, confidence))
    low, high = np.full(len(count), np.inf), np.full(len(count), -np.inf)
    np.minimum.at(low, part, by)
    np.maximum.at(high, part, by)
    names = ("n", "low", "high", "mean_label", "mean_confidence")
    found: list[LabelPart] = [
        dict(zip(names, one, strict=True))  # type: ignore[misc]
        for one in zip(
            count.tolist(), low.tolist(), high.tolist(), labels.tolist(), sure.tolist(), strict=True
        )
    ]
    return found


def _bin(predicted: float, clicked: float, n: float) -> Bin:
    return {"predicted": float(predicted), "clicked": float(clicked), "n": int(n)}


def describe_anchors(anchors: InterestAnchors) -> AnchorExtra:
    """Return how many and how varied the anchors are, for ``extra["anchors"]``."""
    count = np.diff(anchors.offsets)
    has = count > 0
    owner = anchors.users().astype(np.int64)
    width = int(anchors.codes[:, 0].max(initial=0)) + 1
    first = np.unique(owner * width + anchors.codes[:, 0])
    distinct = np.bincount(first // width, minlength=anchors.n_users)
    return {
        "source": anchors.source,
        "users": anchors.n_users,
        "with_anchors": int(has.sum()),
        "per_user": float(count[has].mean()) if has.any() else 0.0,
        "first_codes_per_user": float(distinct[has].mean()) if has.any() else 0.0,
        "cosine_within_user": _cosine_within(anchors, count),
    }


def _cosine_within(anchors: InterestAnchors, count: NDArray[np.int64]) -> float:
    """Return the mean over users with two anchors or more of their mean pairwise cosine."""
    many = count > 1
    if not many.any():
        return 0.0
    parts = [_sums_of_several(vectors, offsets) for _, vectors, offsets in anchors.by_users()]
    sums, n = np.concatenate(parts).astype(np.float64), count[many]
    return float(((np.einsum("ud,ud->u", sums, sums) - n) / (n * (n - 1))).mean())


def _sums_of_several(
    vectors: NDArray[np.float32], offsets: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the (n, D) sums of the n groups of rows that have two or more."""
    count = np.diff(offsets)
    filled = count > 0
    sums: NDArray[np.float32] = np.add.reduceat(vectors, offsets[:-1][filled], axis=0)
    return sums[count[filled] > 1]


def sample_users(
    dataset: Dataset,
    embeddings: ItemEmbeddings,
    anchors: InterestAnchors,
    labels: PseudoLabels | None,
    n: int,
    seed: int,
) -> list[UserExtra]:
    """Return ``n`` users drawn by ``seed``, with their history, anchors and pseudo-labels.

    Anchors are named by the item nearest to them in the frozen semantic space. Labels shown are
    the user's highest and lowest, each with the anchor it was matched with. Users with anchors,
    history and labels are drawn first.

    Args:
        dataset: for titles, histories and, where known, the truth.
        embeddings: the frozen semantic space.
        anchors: of all users of the dataset.
        labels: made from ``anchors``, or None.
        n: users wanted.
        seed: of the draw.
    """
    start = dataset.interactions.offsets(len(dataset.users))[:-1]
    end = anchor_ends(dataset)
    interest = (np.diff(anchors.offsets) > 0).astype(np.int64) * 4 + (end > start) * 2
    if labels is not None:
        interest[labels.user[labels.confidence > 0]] += 1
    shuffled = rng(seed, "evaluation", "sample-users").permutation(len(interest))
    chosen = shuffled[np.argsort(-interest[shuffled], kind="stable")][:n]
    history_NH = last_items(dataset.interactions, start[chosen], end[chosen], N_HISTORY)
    found: list[UserExtra] = []
    for user, history_H in zip(chosen.tolist(), history_NH, strict=True):
        titles = dataset.catalog.title
        found.append(
            {
                "user": str(dataset.users.ids[user]),
                "history": [str(titles[item]) for item in history_H[history_H >= 0]],
                "anchors": _anchors_of(user, dataset, embeddings, anchors),
                "labels": _labels_of(user, dataset, embeddings, anchors, labels),
            }
        )
    return found


def _anchors_of(
    user: int, dataset: Dataset, embeddings: ItemEmbeddings, anchors: InterestAnchors
) -> list[UserAnchor]:
    low = int(anchors.offsets[user])
    rows = np.arange(low, min(low + N_ANCHORS, int(anchors.offsets[user + 1])))
    found, cosines = nearest_items(anchors.vectors_of(rows), embeddings)
    item, cosine = found[:, 0], cosines[:, 0]
    return [
        {
            "title": str(dataset.catalog.title[i]),
            "cosine": float(c),
            "prob": float(np.exp(anchors.logprob[row])),
            "first_code": int(anchors.codes[row, 0]),
        }
        for row, i, c in zip(rows, item, cosine, strict=True)
    ]


def _labels_of(
    user: int,
    dataset: Dataset,
    embeddings: ItemEmbeddings,
    anchors: InterestAnchors,
    labels: PseudoLabels | None,
) -> list[UserLabel]:
    if labels is None:
        return []
    rows = np.flatnonzero((labels.user == user) & (labels.confidence > 0))
    rows = rows[np.lexsort((labels.item[rows], -labels.label[rows]))]
    if len(rows) > N_LABELS:
        half = N_LABELS // 2
        rows = np.concatenate([rows[: N_LABELS - half], rows[-half:]])
    matched = np.maximum(labels.anchor[rows], 0)
    near = nearest_items(anchors.vectors_of(matched), embeddings)[0][:, 0]
    truth = truth_of(dataset, labels.user[rows], labels.item[rows])
    titles = dataset.catalog.title
    return [
        {
            "title": str(titles[labels.item[row]]),
            "label": float(labels.label[row]),
            "confidence": float(labels.confidence[row]),
            "because": str(titles[item]) if labels.anchor[row] >= 0 else "",
            "truth": None if np.isnan(known) else float(known),
        }
        for row, item, known in zip(rows, near, truth, strict=True)
    ]


def nearest_items(
    vectors: NDArray[np.float32], embeddings: ItemEmbeddings, k: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the ``k`` nearest items of each vector and their cosines, both (V, k), best first.

    Exact. Blocks of items bound the memory; of a block only what beats the best so far is sorted.
    Equal cosines keep the order of the items. Places beyond the catalogue hold item -1, cosine
    -inf.
    """
    best = np.full((len(vectors), k), -np.inf, dtype=np.float32)
    item = np.full((len(vectors), k), -1, dtype=np.int64)
    if not len(vectors):
        return item, best
    step = max(1, ITEM_CELLS // len(vectors))
    bounds = [0, *range(min(step, FIRST_BLOCK), len(embeddings.vectors), step)]
    for low, high in pairwise([*bounds, len(embeddings.vectors)]):
        cosine = vectors @ embeddings.vectors[low:high].T
        bar = best[:, -1:]
        if np.isinf(bar).any() and high - low > k:
            bar = np.maximum(bar, np.partition(cosine, -k, axis=1)[:, -k, None])
            found = np.flatnonzero(cosine >= bar)
        else:
            found = np.flatnonzero(cosine > bar)
        if not len(found):
            continue
        row, column = np.divmod(found, high - low)
        known = np.repeat(np.arange(len(vectors)), k)
        rows = np.concatenate([known, row])
        items = np.concatenate([item.ravel(), column + low])
        values = np.concatenate([best.ravel(), cosine.ravel()[found]])
        order = np.lexsort((items, -values, rows))
        start = np.searchsorted(rows[order], np.arange(len(vectors)))
        chosen = order[start[:, None] + np.arange(k)]
        item, best = items[chosen], values[chosen]
    return item, best
