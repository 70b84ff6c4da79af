"""Head, mid and tail: items by how often training exposed them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SEGMENTS = ("all", "head", "mid", "tail")
HEAD, MID, TAIL = 1, 2, 3


def item_segments(
    exposures: NDArray[np.int64], tail_below: int, head_share: float
) -> NDArray[np.int8]:
    """Return the segment of each item, (I,) int8: HEAD, MID or TAIL.

    - tail: exposed fewer than ``tail_below`` times in training (never exposed included);
    - head: of the others, the most exposed items that together hold ``head_share`` of all
      training exposures; items that tie with the last of them are head too;
    - mid: the rest.

    Args:
        exposures: (I,) int64 training exposures of each item.
        tail_below: count below which an item is tail.
        head_share: in [0, 1].
    """
    falling = np.sort(exposures)[::-1]
    wanted = head_share * exposures.sum()
    segment = np.full(len(exposures), MID, dtype=np.int8)
    if wanted > 0:
        last = int(np.searchsorted(np.cumsum(falling), wanted))
        segment[exposures >= falling[min(last, len(falling) - 1)]] = HEAD
    segment[exposures < tail_below] = TAIL
    return segment
