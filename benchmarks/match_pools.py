"""How the cosines to many anchors should become one number: GAUC of the label score alone.

    python benchmarks/match_pools.py runs/NAME [--anchors llm --anchors history] [--json]

For every pool of validation rows (never test), each anchor set of a run and each way to match: the
mean over users of the AUC of relevance against click. No pre-ranker, no calibration. docs/log.md
holds what it found.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from prerank import artifacts as a
from prerank import store
from prerank.data.auc import grouped_auc
from prerank.labels.matching import Pooling, match_pairs

WAYS = {
    "max": Pooling("max"),
    "top-3": Pooling("top-m", top_m=3),
    "log-sum-exp .2": Pooling("log-sum-exp", temperature=0.2),
    "probability-weighted .1": Pooling("probability-weighted", temperature=0.1),
    "probability-weighted .2": Pooling("probability-weighted", temperature=0.2),
    "probability-weighted .5": Pooling("probability-weighted", temperature=0.5),
}
MOST_ROWS = 500_000


def rows_of(pools: a.Pools, pool: int) -> a.TimeArray:
    """Return validation rows of a pool: those of whole users, about MOST_ROWS of them."""
    found = np.flatnonzero((pools.split == a.VALIDATION) & (pools.pool == pool))
    if len(found) <= MOST_ROWS:
        return found
    users = np.random.default_rng(0).permutation(np.unique(pools.user[found]))
    kept = users[: len(users) * MOST_ROWS // len(found)]
    return found[np.isin(pools.user[found], kept)]


def gauc_of(run: Path, names: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Return pool -> anchors -> way -> GAUC; pairs that match nothing count as the lowest."""
    dataset = store.load(run / "dataset", a.Dataset)
    embeddings = store.load(run / "embeddings", a.ItemEmbeddings)
    pools = dataset.pools
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in names:
        anchors = store.load(run / "anchors" / name, a.InterestAnchors)
        for code, pool in enumerate(pools.pools):
            rows = rows_of(pools, code)
            user, item, click = pools.user[rows], pools.item[rows], pools.click[rows]
            if not len(rows):
                continue
            of = found.setdefault(pool, {}).setdefault(name, {})
            for way, pooling in WAYS.items():
                relevance = match_pairs(user, item, embeddings, anchors, pooling).relevance
                values, _ = grouped_auc(user, click, np.nan_to_num(relevance, nan=-1))
                of[way] = round(float(np.nanmean(values)), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a run whose anchors are made")
    parser.add_argument("--anchors", action="append", help="folder under anchors/; repeat")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    found = gauc_of(options.run, options.anchors or ["llm", "history", "llm+history"])
    if options.json:
        print(json.dumps(found))
        return
    for pool, of in found.items():
        for name, ways in of.items():
            for way, value in ways.items():
                print(f"{pool:20s} {name:14s} {way:26s} {value:.4f}")


if __name__ == "__main__":
    main()
