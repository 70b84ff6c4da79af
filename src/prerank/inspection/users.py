"""Users: a list that begins with the worst disagreements, and everything known of one user."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prerank import seeds
from prerank.artifacts import FloatArray, IntArray, TimeArray
from prerank.data.history import anchor_ends
from prerank.evaluation.explain import nearest_items
from prerank.inspection.asked import User, Users, not_found
from prerank.inspection.opened import AnchorTable, OpenedRun
from prerank.inspection.values import (
    features_of,
    item_of,
    moment,
    pager,
    plain,
    sid_of,
    user_index,
)

COMPARED_USERS = 300
COMPARED_ROWS = 200
NAMES = 3
LABELLED = "labelled"


# ---- the list --------------------------------------------------------------------------------


def users(run: OpenedRun, asked: Users) -> dict[str, Any]:
    """Return a page of users: the most disagreed upon, or those whose id begins with ``q``."""
    left, right = pair_of(run, asked.left, asked.right)
    ids = run.dataset.users.ids
    if asked.q:
        low = int(np.searchsorted(ids, asked.q))
        # Ids are sorted: those that begin alike stand together.
        high = low + int(np.searchsorted(~np.char.startswith(ids[low:], asked.q), True))
        chosen, apart = np.arange(low, high), np.full(high - low, np.nan)
    else:
        chosen, apart = disagreements(run, left, right)
        if not len(chosen):
            chosen, apart = np.arange(len(ids)), np.full(len(ids), np.nan)
    page = pager(len(chosen), asked.page)
    shown = slice(page["start"], page["stop"])
    labelled = run.choose("", run.labelled, run.config.method)
    count = run.labels(labelled).count if labelled else np.zeros(len(ids), np.int64)
    rows = [
        {
            "id": str(ids[user]),
            "disagreement": plain(gap),
            **{name: int(of[user]) for name, of in run.user_counts.items()},
            "labels": int(count[user]),
        }
        for user, gap in zip(chosen[shown].tolist(), apart[shown].tolist(), strict=True)
    ]
    return {
        "q": asked.q,
        "left": left,
        "right": right,
        "methods": list(run.rankers),
        "unreadable": dict(run.unreadable),
        "users": rows,
        "n_users": len(ids),
        "compared": 0 if asked.q else int((~np.isnan(apart)).sum()),
        **page,
    }


def surprise(run: OpenedRun) -> str:
    """Return the id of a random user, one with pseudo-labels where there are any."""
    count = run.user_counts["interactions"]
    labelled = run.choose("", run.labelled, run.config.method)
    if labelled:
        count = run.labels(labelled).count
    known = np.flatnonzero(count)
    if not len(known):
        known = np.arange(len(count))
    return str(run.dataset.users.ids[known[secrets.randbelow(len(known))]])


def pair_of(run: OpenedRun, left: str, right: str) -> tuple[str, str]:
    """Return the two pre-rankers to compare; the main method and its baseline by default."""
    one = run.choose(left, run.rankers, run.config.method)
    rest = [name for name in (run.baseline, *run.rankers) if name and name != one]
    return one, run.choose(right, run.rankers, *rest)


def disagreements(
    run: OpenedRun, left: str, right: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return users and how far two pre-rankers differ on their candidates, the farthest first.

    At most `COMPARED_USERS` users with pseudo-labels, drawn by the run's seed, and of each at most
    `COMPARED_ROWS` candidates. The distance is Spearman's footrule, 0 the same order, 1 the
    farthest there is (extension, ours).
    """
    known: dict[tuple[str, str], Any] = run.__dict__.setdefault("disagreements", {})
    if (left, right) not in known:
        known[left, right] = _disagreements(run, left, right)
    found: tuple[NDArray[np.int64], NDArray[np.float64]] = known[left, right]
    return found


def _disagreements(
    run: OpenedRun, left: str, right: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    method = run.choose("", run.labelled, run.config.method)
    nothing = np.zeros(0, np.int64), np.zeros(0)
    if not method or not left or not right or left == right:
        return nothing
    table = run.labels(method)
    several = np.flatnonzero(table.count > 1)
    drawn = seeds.rng(run.seed, "inspect", "users").permutation(several)[:COMPARED_USERS]
    rows = (
        table.frame.filter(pl.col("user").is_in(np.sort(drawn).tolist()))
        .select("user", "item", "time")
        .collect()
        .sort("user", maintain_order=True)
    )
    user, item = rows["user"].to_numpy(), rows["item"].to_numpy()
    place = np.arange(len(user)) - np.searchsorted(user, user)
    kept = place < COMPARED_ROWS
    user, item, moments = user[kept], item[kept], rows["time"].to_numpy()[kept]
    if not len(user):
        return nothing
    group = np.unique(user, return_inverse=True)[1]
    scores = [run.scores(name, user, item, moments) for name in (left, right)]
    ranks = [ranks_in(group, of) for of in scores if of is not None]
    if len(ranks) < 2:
        return nothing
    size = np.bincount(group)
    apart = np.bincount(group, weights=np.abs(ranks[0] - ranks[1])) / (size**2 // 2)
    order = np.argsort(-apart, kind="stable")
    return np.unique(user)[order].astype(np.int64), apart[order]


def ranks_in(group: NDArray[np.integer], score: FloatArray) -> NDArray[np.int64]:
    """Return the rank of each row inside its group, 1 the highest score; ties keep their order."""
    order = np.lexsort((-score, group))
    start = np.searchsorted(group[order], group[order])
    rank = np.empty(len(group), dtype=np.int64)
    rank[order] = np.arange(len(group)) - start + 1
    return rank


# ---- one user --------------------------------------------------------------------------------


def user(run: OpenedRun, asked: User) -> dict[str, Any]:
    """Return history, anchors and candidates of a user, with two rankings of the candidates."""
    who = user_index(run, asked.id)
    method = run.choose(asked.method, run.labelled, run.config.method)
    left, right = pair_of(run, asked.left, asked.right)
    anchors = run.anchors(method) if method else None
    named = _anchors(run, anchors, who, asked.anchors) if anchors else {"shown": [], "n": 0}
    among = _among(run, who, method, asked.among)
    return {
        "id": asked.id,
        "counts": {name: int(of[who]) for name, of in run.user_counts.items()},
        "features": features_of(run.dataset.user_features, who),
        "history": _history(run, who, asked.history),
        "method": method,
        "methods": list(run.labelled),
        "left": left,
        "right": right,
        "rankers": list(run.rankers),
        "anchors": named["shown"],
        "n_anchors": named["n"],
        "anchor_source": anchors.source if anchors else "",
        "sort": asked.sort,
        "limits": {"history": asked.history, "anchors": asked.anchors},
        **_candidates(run, who, asked, method, (left, right), among, named),
    }


def _history(run: OpenedRun, who: int, length: int) -> list[dict[str, Any]]:
    """Return the latest interactions, the newest first."""
    data, low, high = run.dataset, int(run.starts[who]), int(run.starts[who + 1])
    seen = int(anchor_ends_of(run)[who])
    return [
        {
            **item_of(run, int(data.interactions.item[row])),
            "time": moment(int(data.interactions.time[row]), data.time_unit),
            "seen_by_anchors": row < seen,
        }
        for row in range(high - 1, max(low, high - length) - 1, -1)
    ]


def anchor_ends_of(run: OpenedRun) -> TimeArray:
    """Return where each user's history ends for the anchors, kept for the next page."""
    ends: TimeArray | None = run.__dict__.get("anchor_ends")
    if ends is None:
        ends = run.__dict__["anchor_ends"] = anchor_ends(run.dataset)
    return ends


def _anchors(run: OpenedRun, table: AnchorTable, who: int, n: int) -> dict[str, Any]:
    arrays = table.of_user(who)
    # All at once: candidates are explained by anchors that are not shown, too.
    near, cosine = nearest_items(arrays["vectors"], run.space(), NAMES)
    shown = min(n, len(arrays["vectors"]))
    found = [
        {
            "rank": place + 1,
            "sid": ".".join(map(str, arrays["codes"][place].tolist())),
            "first_code": int(arrays["codes"][place, 0]),
            "probability": plain(np.exp(arrays["logprob"][place])),
            "probability_legal": plain(np.exp(arrays["logprob_legal"][place])),
            "near": [
                {**item_of(run, int(item)), "cosine": plain(c)}
                for item, c in zip(near[place], cosine[place], strict=True)
                if item >= 0
            ],
        }
        for place in range(shown)
    ]
    first = int(table.offsets[who])
    codes = arrays["codes"]
    return {"shown": found, "n": len(codes), "first": first, "codes": codes, "names": near[:, 0]}


def _among(run: OpenedRun, who: int, method: str, wanted: str) -> dict[str, Any]:
    """Return which candidates can be shown, and which are: labelled pairs, or a pool's rows."""
    pools, rows = run.dataset.pools, run.pool_rows.rows(who)
    there = [pools.pools[code] for code in np.unique(pools.pool[rows]).tolist()]
    has = bool(method) and bool(run.labels(method).count[who])
    known = [*([LABELLED] if has else []), *there]
    if wanted and wanted not in ([LABELLED] if method else []) + list(pools.pools):
        raise not_found(f"no candidates named {wanted[:80]!r}", f"known: {', '.join(known)}")
    unexposed = [name for name in there if "unexposed" in name]
    default = next(iter([*([LABELLED] if has else []), *unexposed, *there]), "")
    return {"known": known, "among": wanted or default}


def _candidates(
    run: OpenedRun,
    who: int,
    asked: User,
    method: str,
    pair: tuple[str, str],
    among: dict[str, Any],
    named: dict[str, Any],
) -> dict[str, Any]:
    rows = _rows(run, who, asked, method, among["among"])
    item, moments = rows["item"], rows["time"]
    users_ = np.full(len(item), who, np.int32)
    scores = [
        run.scores(name, users_, item, moments) if name and len(item) else None for name in pair
    ]
    one = np.zeros(len(item), np.int64)
    ranks = [None if of is None else ranks_in(one, of) for of in scores]
    move = None if ranks[0] is None or ranks[1] is None else ranks[1] - ranks[0]
    order = _order(asked.sort, rows, ranks, move)
    page = pager(len(item), asked.page)
    truth = rows["truth"]
    found = []
    for place in order[page["start"] : page["stop"]].tolist():
        one_row: dict[str, Any] = {
            **item_of(run, int(item[place])),
            "sid": sid_of(run, int(item[place])),
            "time": moment(int(moments[place]), run.dataset.time_unit),
            "truth": plain(truth[place]),
            "left": None if ranks[0] is None else int(ranks[0][place]),
            "right": None if ranks[1] is None else int(ranks[1][place]),
            "left_score": None if scores[0] is None else plain(scores[0][place]),
            "right_score": None if scores[1] is None else plain(scores[1][place]),
            "move": None if move is None else int(move[place]),
            "label": None,
        }
        if "label" in rows:
            one_row |= {name: plain(rows[name][place]) for name in FACTORS}
            one_row["because"] = _because(run, int(rows["anchor"][place]), named)
        found.append(one_row)
    n = len(item)
    footrule = None
    if move is not None and n > 1:
        footrule = float(np.abs(move).sum() / (n**2 // 2))
    return {
        "among": among["among"],
        "among_known": among["known"],
        "request": rows["request"],
        "n_requests": rows["n_requests"],
        "candidates": found,
        "disagreement": footrule,
        "unreadable": {name: run.unreadable[name] for name in pair if name in run.unreadable},
        **page,
    }


FACTORS = ("label", "confidence", "dispersion", "history", "llm", "relevance")


def _rows(run: OpenedRun, who: int, asked: User, method: str, among: str) -> dict[str, Any]:
    """Return the candidates' columns; those of a pool are one request's rows."""
    if among == LABELLED:
        if asked.request > 1:
            raise not_found("pseudo-labels belong to no request", "choose a pool's candidates")
        table = run.labels(method).of_user(who)
        rows: dict[str, Any] = {name: table[name].to_numpy() for name in table.columns}
        return {
            **rows,
            "truth": run.truth.look_up(rows["user"], rows["item"]),
            "request": 1,
            "n_requests": 1,
        }
    pools = run.dataset.pools
    mine = run.pool_rows.rows(who)
    if among:
        mine = mine[pools.pool[mine] == pools.pools.index(among)]
    requests = np.unique(pools.request[mine])
    if asked.request > max(1, len(requests)):
        raise not_found(f"there is no request {asked.request}", f"the last is {len(requests)}")
    if len(requests):
        mine = mine[pools.request[mine] == requests[asked.request - 1]]
    return {
        "item": pools.item[mine],
        "time": pools.time[mine],
        "truth": pools.click[mine].astype(np.float32),
        "request": asked.request,
        "n_requests": len(requests),
    }


def _order(
    sort: str, rows: dict[str, Any], ranks: list[Any], move: IntArray | None
) -> NDArray[np.int64]:
    """Return the order to show candidates in: by the left pre-ranker unless asked otherwise."""
    n = len(rows["item"])
    keys: dict[str, Any] = {
        "label": -rows["label"] if "label" in rows else None,
        "confidence": -rows["confidence"] if "confidence" in rows else None,
        "left": ranks[0],
        "right": ranks[1],
        "move": None if move is None else -np.abs(move),
    }
    chosen = keys.get(sort)
    if chosen is None:
        chosen = next((key for key in (keys["label"], ranks[0]) if key is not None), np.zeros(n))
    return np.argsort(chosen, kind="stable").astype(np.int64)


def _because(run: OpenedRun, anchor: int, named: dict[str, Any]) -> dict[str, Any] | None:
    """Return the matched anchor's rank, semantic ID and the item it is named by."""
    if anchor < 0 or not named["n"]:
        return None
    place = anchor - named["first"]
    if not 0 <= place < named["n"]:
        return None
    name = int(named["names"][place])
    return {
        "rank": place + 1,
        "sid": ".".join(map(str, named["codes"][place].tolist())),
        "title": item_of(run, name)["title"] if name >= 0 else "",
    }
