"""Labels by the smoothed click rate of the item: popular among those who saw it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import TRAIN, Dataset, InterestAnchors, ItemEmbeddings
from prerank.data.unexposed import UnexposedPairs

Column = NDArray[np.float64]


def label(
    dataset: Dataset,
    embeddings: ItemEmbeddings,
    anchors: InterestAnchors | None,
    pairs: UnexposedPairs,
    options: Mapping[str, Any],
    seed: int,
) -> tuple[Column, Column]:
    """Return label (N,) in [0, 1] and confidence (N,) >= 0 of the unexposed pairs."""
    shown = dataset.exposures
    known = (shown.split == TRAIN) & (shown.click >= 0)
    item, click = shown.item[known], shown.click[known]
    count = np.bincount(item, minlength=len(dataset.items))
    clicks = np.bincount(item, weights=click, minlength=len(dataset.items))
    strength = float(options.get("strength", 20.0))
    rate = (clicks + strength * click.mean()) / (count + strength)
    return rate[pairs.item], (count / (count + strength))[pairs.item]
