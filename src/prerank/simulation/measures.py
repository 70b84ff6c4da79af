"""What is counted of a day's traffic, and the rates made of the counts.

Counts add up over days; rates are ratios of their sums, as an A/B report makes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import FloatArray, IntArray, TimeArray
from prerank.data.unexposed import sorted_unique
from prerank.data.world_cascade import EXPOSED, PAGE_ID, Traffic, examination

Counts = dict[str, float]

METRICS: Mapping[str, str] = {
    "ctr": "clicks per exposure",
    "expected_ctr": "the same, with the known click probability in place of the click",
    "page_views": "pages per visit",
    "clicks_per_visit": "clicks (item page views) per visit",
    "categories": "distinct categories shown to a user on a day",
    "categories_clicked": "distinct categories that a user clicked on a day",
    "diversity": "1 - mean cosine between the items of a page",
    "tail_exposures": "share of exposures on the long tail",
    "tail_clicks": "share of clicks on the long tail",
    "new_exposures": "share of exposures on items released since the arms started",
    "new_discovered": "share of these items with at least one click",
    "coverage": "share of all released items shown at least once since the arms started",
}
"""Every metric of the table and what it is; larger is more, not always better."""


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What traffic is measured by; the same for every arm of a replication.

    Attributes:
        vectors: (I, D) frozen content vectors.
        category: (I,) int codes.
        tail: (I,) bool, long tail when the arms start.
        release: (I,) int64 UTC ms.
        start: UTC ms when the arms start.
        position_bias: of the slots.
    """

    vectors: FloatArray
    category: IntArray
    tail: NDArray[np.bool_]
    release: TimeArray
    start: int
    position_bias: float


def count(traffic: Traffic, yardstick: Yardstick) -> Counts:
    """Return the counts of one day."""
    rows = np.flatnonzero(traffic.stage == EXPOSED)
    item, click = traffic.item[rows], traffic.click[rows] == 1
    looked = examination(traffic.position[rows], yardstick.position_bias)
    tail = yardstick.tail[item]
    new = yardstick.release[item] > yardstick.start
    pages = np.unique(traffic.request)
    n_categories = int(yardstick.category.max(initial=0)) + 1
    met = traffic.user[rows].astype(np.int64) * n_categories + yardstick.category[item]
    return {
        "visits": float((pages < PAGE_ID).sum()),
        "pages": float(len(pages)),
        "users": float(len(np.unique(traffic.user[rows]))),
        "exposures": float(len(rows)),
        "clicks": float(click.sum()),
        "expected_clicks": float((traffic.truth[rows] * looked).sum()),
        "tail_exposures": float(tail.sum()),
        "tail_clicks": float((tail & click).sum()),
        "new_exposures": float(new.sum()),
        "categories": float(len(sorted_unique(met))),
        "categories_clicked": float(len(sorted_unique(met[click]))),
        **_page_diversity(traffic.request[rows], item, yardstick.vectors),
    }


def _page_diversity(request: TimeArray, item: IntArray, vectors: FloatArray) -> Counts:
    """Return the sum over pages of 1 - mean cosine of all pairs of the page's items, and the pages.

    Of k unit vectors with sum s, the pairs' cosines sum to (|s|^2 - k) / 2. A page of one item has
    no pairs and does not count.
    """
    if not len(request):
        return {"page_diversity": 0.0, "pages_of_several": 0.0}
    order = np.argsort(request, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(request[order]) != 0))
    size = np.diff(np.append(starts, len(order)))
    total = np.add.reduceat(vectors[item[order]].astype(np.float64), starts, axis=0)
    own = np.add.reduceat((vectors[item[order]].astype(np.float64) ** 2).sum(axis=1), starts)
    pairs = np.maximum(size * (size - 1), 1)
    several = size > 1
    found = (1 - ((total**2).sum(axis=1) - own) / pairs)[several]
    return {"page_diversity": float(found.sum()), "pages_of_several": float(several.sum())}


def item_counts(traffic: Traffic, n_items: int) -> tuple[TimeArray, TimeArray]:
    """Return exposures and clicks of each item, (I,) int64 each."""
    shown = traffic.item[traffic.stage == EXPOSED]
    hit = traffic.item[traffic.click == 1]
    return (
        np.bincount(shown, minlength=n_items).astype(np.int64),
        np.bincount(hit, minlength=n_items).astype(np.int64),
    )


def final_counts(
    shown: TimeArray, clicked: TimeArray, yardstick: Yardstick, end: int
) -> dict[str, float]:
    """Return what only the whole test can count: items shown, new items found.

    Args:
        shown, clicked: (I,) exposures and clicks since the arms started.
        yardstick: of the replication.
        end: UTC ms when the test ends.
    """
    released = yardstick.release <= end
    new = released & (yardstick.release > yardstick.start)
    return {
        "released": float(released.sum()),
        "shown": float((released & (shown > 0)).sum()),
        "new": float(new.sum()),
        "new_discovered": float((new & (clicked > 0)).sum()),
    }


def rates(days: Sequence[Counts], whole: Counts) -> dict[str, float]:
    """Return every metric of ``METRICS`` over all ``days``; NaN where nothing is counted."""
    total = {name: sum(day[name] for day in days) for name in days[0]}

    def ratio(part: float, of: float) -> float:
        return part / of if of else float("nan")

    return {
        "ctr": ratio(total["clicks"], total["exposures"]),
        "expected_ctr": ratio(total["expected_clicks"], total["exposures"]),
        "page_views": ratio(total["pages"], total["visits"]),
        "clicks_per_visit": ratio(total["clicks"], total["visits"]),
        "categories": ratio(total["categories"], total["users"]),
        "categories_clicked": ratio(total["categories_clicked"], total["users"]),
        "diversity": ratio(total["page_diversity"], total["pages_of_several"]),
        "tail_exposures": ratio(total["tail_exposures"], total["exposures"]),
        "tail_clicks": ratio(total["tail_clicks"], total["clicks"]),
        "new_exposures": ratio(total["new_exposures"], total["exposures"]),
        "new_discovered": ratio(whole["new_discovered"], whole["new"]),
        "coverage": ratio(whole["shown"], whole["released"]),
    }
