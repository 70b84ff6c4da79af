"""Items and their semantic IDs: a list, one item, one node of the tree."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import TRAIN
from prerank.evaluation import sections
from prerank.evaluation.explain import nearest_items
from prerank.evaluation.plots import Plot
from prerank.evaluation.segments import SEGMENTS
from prerank.inspection.asked import Item, Items, Sids, not_found
from prerank.inspection.opened import OpenedRun
from prerank.inspection.values import features_of, item_index, item_of, pager, plain, sid_of

NEIGHBOURS = 10
EXAMPLES = 3


def items(run: OpenedRun, asked: Items) -> dict[str, Any]:
    """Return a page of items: whose title holds ``q``, or whose id it is, of one segment."""
    ids = run.dataset.items.ids
    chosen: NDArray[np.integer] = (
        run.by_exposures if asked.sort == "exposures" else np.arange(len(ids))
    )
    keep = np.ones(len(ids), dtype=np.bool_)
    if asked.q:
        keep = run.titles.str.contains(asked.q.lower(), literal=True).to_numpy().copy()
        same = int(run.dataset.items.lookup([asked.q])[0])
        if same >= 0:
            keep[same] = True
    if asked.segment:
        keep &= run.segments == SEGMENTS.index(asked.segment)
    if asked.q or asked.segment:
        chosen = chosen[keep[chosen]]
    page = pager(len(chosen), asked.page)
    return {
        "q": asked.q,
        "segment": asked.segment,
        "sort": asked.sort,
        "items": [_row(run, item) for item in chosen[page["start"] : page["stop"]].tolist()],
        "n_items": len(ids),
        **page,
    }


def _row(run: OpenedRun, item: int) -> dict[str, Any]:
    return {
        **item_of(run, item),
        "exposures": int(run.exposures[item]),
        "segment": SEGMENTS[int(run.segments[item])],
        "sid": sid_of(run, item),
    }


def item(run: OpenedRun, asked: Item) -> dict[str, Any]:
    """Return one item: content, exposure, bucket mates and nearest neighbours."""
    which = item_index(run, asked.id)
    data = run.dataset
    log = data.exposures
    mine = (log.item == which) & (log.split == TRAIN)
    found: dict[str, Any] = {
        **_row(run, which),
        "text": str(data.catalog.text[which])[:4000],
        "features": features_of(run.dataset.catalog.features, which),
        "clicks": int((log.click[mine] == 1).sum()),
        "bucket": [],
        "neighbours": [],
        **pager(0, 1),
    }
    if "semantic_ids" in run.artifacts:
        prefix = tuple(run.semantic_ids.codes[which].tolist())
        low, high = run.tree.node(prefix)
        mates = run.tree.items[low:high]
        mates = mates[mates != which]
        page = pager(len(mates), asked.page)
        shown = mates[page["start"] : page["stop"]].tolist()
        found |= {"bucket": [_row(run, mate) for mate in shown], **page}
    if "embeddings" in run.artifacts:
        vector = np.asarray(run.space().vectors[which : which + 1])
        near, cosine = nearest_items(vector, run.space(), NEIGHBOURS + 1)
        pairs = [(int(i), float(c)) for i, c in zip(near[0], cosine[0], strict=True)]
        found["neighbours"] = [
            {**_row(run, other), "cosine": plain(c)}
            for other, c in pairs
            if other >= 0 and other != which
        ][:NEIGHBOURS]
        found["has_content"] = bool(vector.any())
    return found


def sids(run: OpenedRun, asked: Sids) -> dict[str, Any]:
    """Return one node of the tree: its children with counts and examples, or its items."""
    prefix = tuple(int(code) for code in asked.prefix.split(".")) if asked.prefix else ()
    ids = run.semantic_ids
    if len(prefix) > ids.n_levels:
        raise not_found(f"semantic IDs have {ids.n_levels} levels", f"got {len(prefix)} codes")
    low, high = run.tree.node(prefix)
    if low == high:
        raise not_found(f"no item's semantic ID begins with {asked.prefix!r}")
    found: dict[str, Any] = {
        "prefix": asked.prefix,
        "path": [".".join(map(str, prefix[: k + 1])) for k in range(len(prefix))],
        "level": len(prefix) + 1,
        "n_levels": ids.n_levels,
        "n_items": high - low,
        "sort": asked.sort,
        "children": [],
        "items": [],
    }
    if len(prefix) == ids.n_levels:
        page = pager(high - low, asked.page)
        inside = run.tree.items[low + page["start"] : low + page["stop"]].tolist()
        return {**found, "items": [_row(run, item) for item in inside], **page}
    codes, start, count = run.tree.children(prefix)
    order = np.argsort(-count, kind="stable") if asked.sort == "count" else np.arange(len(codes))
    page = pager(len(codes), asked.page)
    found["children"] = [
        {
            "code": int(codes[k]),
            "prefix": ".".join(map(str, (*prefix, int(codes[k])))),
            "items": int(count[k]),
            "examples": _examples(run, run.tree.items[start[k] : start[k] + count[k]]),
        }
        for k in order[page["start"] : page["stop"]].tolist()
    ]
    if not prefix:
        found |= {
            "quality": dict(ids.quality),
            "map": run.map if "embeddings" in run.artifacts else None,
        }
    return {**found, **page}


def _examples(run: OpenedRun, inside: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Return the most exposed items of a node."""
    shown = run.exposures[inside]
    few = np.argpartition(-shown, EXAMPLES)[:EXAMPLES] if len(inside) > EXAMPLES else slice(None)
    best = inside[few]
    best = best[np.argsort(-run.exposures[best], kind="stable")]
    return [item_of(run, item) for item in best.tolist()]


def sids_plots(run: OpenedRun, data: dict[str, Any]) -> dict[str, list[Plot]]:
    """Return the use of the codebooks and the catalogue's map, on the root page."""
    return {
        "quality": sections.quality_plots(data.get("quality")),
        "map": sections.map_plots(data.get("map")),
    }
