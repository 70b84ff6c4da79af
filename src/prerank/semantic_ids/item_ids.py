"""The ablation without semantic IDs: every item is a code of its own, on one level."""

from __future__ import annotations

import numpy as np

from prerank.artifacts import FloatArray, IntArray
from prerank.semantic_ids.rqkmeans import RqKMeans


def item_ids(vectors_ID: FloatArray) -> tuple[RqKMeans, IntArray]:
    """Return one codebook of all item vectors, and each item's row in it as its code, (I, 1).

    The paper's ablation (S; the form is ours, C): the same anchor model and search then predict
    items, one token each, and know nothing of what items have in common. A new item would get the
    code of the item nearest to it: an item code says nothing of an item it has not seen.
    """
    codes_I1 = np.arange(len(vectors_ID), dtype=np.int32)[:, None]
    return RqKMeans((np.ascontiguousarray(vectors_ID),)), codes_I1
