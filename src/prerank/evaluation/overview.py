"""What a run's data says before any method: the funnel, exposure bias, the catalogue's map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import (
    TRAIN,
    Dataset,
    FloatArray,
    IntArray,
    ItemEmbeddings,
    SemanticIds,
    TextArray,
)
from prerank.data.unexposed import exposure_counts
from prerank.evaluation.extra import CascadeExtra, CatalogMap, Decile, FunnelStep
from prerank.evaluation.metrics import gini
from prerank.seeds import rng
from prerank.vocabulary import Vocabulary

TENTHS = 10
LORENZ_POINTS = 101
MAP_POINTS = 1500
EXPOSED = "exposed"


def describe_cascade(dataset: Dataset) -> CascadeExtra:
    """Return the funnel and the exposure bias of the training period, for ``extra["cascade"]``.

    The funnel starts with the logged candidates, stage by stage of the production cascade; logs
    without candidates start with the exposures. Tenths are of the items, by training exposures;
    items of equal counts keep the order of their ids.
    """
    shown = dataset.exposures.split == TRAIN
    clicked = shown & (dataset.exposures.click == 1)
    n_items = len(dataset.items)
    counts = {
        "candidates": np.bincount(dataset.candidates.item, minlength=n_items),
        "exposures": exposure_counts(dataset),
        "clicks": np.bincount(dataset.exposures.item[clicked], minlength=n_items),
    }
    named = {"recalled candidates": "candidates", "exposures": "exposures", "clicks": "clicks"}
    known = {name: counts[key] for name, key in named.items() if counts[key].any()}
    return {
        "funnel": _funnel(dataset, shown, clicked),
        "deciles": _deciles(counts),
        "lorenz": {name: lorenz(of) for name, of in known.items()},
        "gini": {name: gini(of) for name, of in known.items()},
    }


def _funnel(
    dataset: Dataset, shown: NDArray[np.bool_], clicked: NDArray[np.bool_]
) -> list[FunnelStep]:
    rows = dataset.candidates
    steps: list[FunnelStep] = []
    for code, name in enumerate(rows.stages if len(rows) else ()):
        if name != EXPOSED:
            reached = rows.stage >= code
            steps.append(_step(name, rows.user[reached], rows.item[reached]))
    log = dataset.exposures
    steps.append(_step(EXPOSED, log.user[shown], log.item[shown]))
    steps.append(_step("clicked", log.user[clicked], log.item[clicked]))
    return steps


def _step(name: str, user: IntArray, item: IntArray) -> FunnelStep:
    return {
        "step": name,
        "rows": len(user),
        "users": int(np.count_nonzero(np.bincount(user))),
        "items": int(np.count_nonzero(np.bincount(item))),
    }


def _deciles(counts: dict[str, NDArray[np.int64]]) -> list[Decile]:
    shown = counts["exposures"]
    order = np.argsort(shown, kind="stable")
    found: list[Decile] = []
    for place, items in enumerate(np.array_split(order, min(TENTHS, len(order)))):
        share = {name: float(of[items].sum() / max(1, of.sum())) for name, of in counts.items()}
        found.append(
            {
                "decile": place + 1,
                "items": len(items),
                "low": int(shown[items].min()),
                "high": int(shown[items].max()),
                "candidates": share["candidates"],
                "exposures": share["exposures"],
                "clicks": share["clicks"],
            }
        )
    return found


def lorenz(counts: NDArray[np.int64]) -> list[float]:
    """Return the Lorenz curve of ``counts`` (I,) at `LORENZ_POINTS` shares of the items."""
    total = np.concatenate([[0], np.cumsum(np.sort(counts))]).astype(np.float64)
    places = np.linspace(0, len(counts), LORENZ_POINTS)
    return [float(v) for v in np.interp(places, np.arange(len(total)), total / max(total[-1], 1))]


def catalog_map(
    embeddings: ItemEmbeddings,
    semantic_ids: SemanticIds,
    items: Vocabulary,
    titles: TextArray,
    seed: int,
    n_points: int = MAP_POINTS,
) -> CatalogMap:
    """Return at most ``n_points`` items drawn by ``seed`` on their two principal axes.

    The axes are those of the drawn items (principal component analysis); items without content
    are left out.
    """
    shuffled = rng(seed, "evaluation", "map").permutation(len(embeddings.vectors))
    drawn = np.sort(shuffled[:n_points])
    vectors = np.asarray(embeddings.vectors[drawn])
    has = vectors.any(axis=1)
    drawn, vectors = drawn[has], vectors[has]
    xy, explained = _principal(vectors)
    codes = semantic_ids.codes[drawn]
    return {
        "points": [
            {
                "item": str(items.ids[item]),
                "title": str(titles[item]),
                "sid": ".".join(map(str, sid)),
                "first_code": int(sid[0]),
                "x": round(float(x), 4),
                "y": round(float(y), 4),
            }
            for item, sid, (x, y) in zip(drawn.tolist(), codes.tolist(), xy, strict=True)
        ],
        "explained": explained,
        "items": len(embeddings.vectors),
    }


def _principal(vectors: FloatArray) -> tuple[NDArray[np.float64], list[float]]:
    """Return (N, 2) coordinates and the share of the variance along each axis."""
    if len(vectors) < 2 or vectors.shape[1] < 2:
        return np.zeros((len(vectors), 2)), [0.0, 0.0]
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    _, strength, axes = np.linalg.svd(centred, full_matrices=False)
    # An axis has no direction of its own: its largest part points up.
    sign = np.sign(axes[np.arange(2), np.abs(axes[:2]).argmax(axis=1)])
    variance = strength**2
    share = variance[:2] / max(variance.sum(), np.finfo(float).tiny)
    return centred @ (axes[:2] * sign[:, None]).T, [float(s) for s in share]
