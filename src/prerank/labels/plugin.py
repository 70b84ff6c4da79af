"""A label source of another package.

label(dataset, embeddings, anchors, pairs, options, seed) -> label (N,), confidence (N,)
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from prerank import plugins
from prerank.artifacts import (
    TEST,
    Dataset,
    InterestAnchors,
    ItemEmbeddings,
    PseudoLabels,
)
from prerank.data.unexposed import UnexposedPairs
from prerank.errors import DataError
from prerank.labels.config import LabelConfig
from prerank.labels.plain import plain_labels


def plugin_labels(
    dataset: Dataset,
    embeddings: ItemEmbeddings,
    anchors: InterestAnchors | None,
    pairs: UnexposedPairs,
    config: LabelConfig,
    seed: int,
) -> PseudoLabels:
    """Return the plug-in's labels of ``pairs``; it sees no test row and no truth.

    Raises:
        ConfigError: the plug-in is not there.
        DataError: it returned no label in [0, 1] or no confidence >= 0 of some pair.
    """
    make = plugins.find(config.plugin, "label.plugin")
    unknown = np.full(len(pairs), np.nan, np.float32)
    asked = replace(pairs, truth=unknown)
    found = make(without_answers(dataset), embeddings, anchors, asked, config.options, seed)
    label, confidence = (np.asarray(values, dtype=np.float64) for values in found)
    fits = label.shape == confidence.shape == (len(pairs),)
    if not (fits and ((label >= 0) & (label <= 1)).all() and (confidence >= 0).all()):
        raise DataError(
            "the label source returned no pseudo-labels",
            where=config.plugin,
            must=f"label ({len(pairs)},) in [0, 1] and confidence ({len(pairs)},) >= 0",
            got=f"{label.shape} and {confidence.shape}, or values outside",
            hint="abstain by confidence 0, never by NaN",
        )
    if not np.isfinite(confidence).all():
        raise DataError("a confidence is infinite", where=config.plugin, must="finite")
    return plain_labels(pairs, label, confidence, config.plugin)


def without_answers(dataset: Dataset) -> Dataset:
    """Return the dataset without what labels must not know: test, pools and every truth."""
    shown, candidates = dataset.exposures, dataset.candidates
    nothing = dataset.pools.take(np.zeros(len(dataset.pools), bool))
    unknown = np.full(len(candidates), np.nan, np.float32)
    return replace(
        dataset,
        exposures=shown.take(shown.split != TEST),
        candidates=replace(candidates, truth=unknown),
        pools=nothing,
    )
