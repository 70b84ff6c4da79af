"""Scores of the test pools -> Report.

One pool at a time, one method at a time: the rows are put in one canonical order (by user,
request and a hash of the item), each training seed is ranked once, and every metric and segment
reads that ranking. Memory is bounded by one method's user sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prerank import seeds
from prerank.artifacts import LEAST_USERS, TEST, Dataset, ItemEmbeddings, Pools, Record, Report
from prerank.data.unexposed import exposure_counts
from prerank.errors import DataError
from prerank.evaluation import metrics, significance
from prerank.evaluation.config import EvaluateConfig
from prerank.evaluation.extra import Bin, EvaluationExtra, PoolExtra, TestExtra, UsersExtra
from prerank.evaluation.pairing import OnMeasured
from prerank.evaluation.segments import SEGMENTS, item_segments
from prerank.evaluation.significance import UserSums
from prerank.evaluation.view import AT, COMPETING, Role, ordered_roles
from prerank.progress import log, track

Scores = NDArray[np.float32]
Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]
Key = tuple[str, str]

SAME = 1e-9  # users whose values differ by less are tied
THREADS = 2  # training seeds measured side by side; each holds one working set in memory
ONE_SEED = "no interval, it would come from the spread over training seeds and there is one"
FEW_USERS = "no interval, fewer than 2 users have a value"


def test_rows(dataset: Dataset) -> Rows:
    """Return the rows of ``dataset.pools`` to score and report on: split TEST, in their order.

    Scores given to `evaluate` have one column for each: score ``dataset.pools.take(rows)``.
    """
    return np.flatnonzero(dataset.pools.split == TEST)


@dataclass(frozen=True, eq=False)
class _Pool:
    """One pool's rows in canonical order; users and requests are dense in the pool.

    ``behind_auc``: by segment, the users that AUC rests on: those who have its rarer class.
    """

    name: str
    rows: Rows
    user: Rows
    users: NDArray[np.integer]
    request: Rows
    owner: Rows
    item: Rows
    click: NDArray[np.int8]
    inside: Mapping[str, Mask]
    available: Mask
    item_inside: Mapping[str, Mask]
    behind_auc: Mapping[str, int]

    @property
    def n_users(self) -> int:
        return len(self.users)

    @property
    def n_requests(self) -> int:
        return len(self.owner)

    @property
    def one_request_a_user(self) -> bool:
        return self.n_requests == self.n_users


@dataclass(frozen=True, eq=False)
class _Measured:
    """A method's results on one pool.

    ``sums`` has the metrics that are means over users, ``whole`` those of the whole pool, as one
    value a seed; a metric in neither is undefined for the method.
    """

    sums: Mapping[Key, UserSums]
    whole: Mapping[Key, NDArray[np.float64]]


def evaluate(
    dataset: Dataset,
    embeddings: ItemEmbeddings | None,
    scores: Mapping[str, Scores],
    config: EvaluateConfig,
    seed: int,
    *,
    label_scores: Mapping[str, Scores] | None = None,
    on_measured: OnMeasured | None = None,
) -> Report:
    """Measure every method on every test pool and segment, and its difference to the baselines.

    Args:
        dataset: with ``pools``; segments come from its training exposures.
        embeddings: the frozen semantic space, for diversity; None leaves that metric null.
        scores: method -> (S, N) float32 logits, one row a training seed (the same S for all
            methods, or 1), one column a row of `test_rows`. Row s of two methods must come from
            the same training seed: differences are paired by it.
        config: what to measure.
        seed: of the bootstrap and the order of ties.
        label_scores: method -> (1, N) a label score alone (no pre-ranker); it is measured like
            the others, but calibration error is null: it is no logit.
        on_measured: told what each user of a pool adds to the metrics, method by method.

    Returns:
        Report with ``extra["evaluation"]`` filled and the differences of every method to every
        baseline, of ``config.method`` to ``config.history_control`` and of a variant to the method
        it varies, each with a p-value and Holm's correction where enough users have a value.
        Methods keep their order; equal arguments give equal bytes, whatever the order of the pools'
        rows.

    Raises:
        DataError: a method's scores have the wrong shape or are not finite, the test split is
            empty, or one request belongs to two users.
    """
    rows = test_rows(dataset)
    if not len(rows):
        raise DataError("there is nothing to evaluate", where="pools", must="rows of split test")
    labels = dict(label_scores or {})
    methods = {**scores, **labels}
    _check(methods, len(rows))
    named = [name for name in config.baselines if name in scores]
    for name in config.baselines:
        if name not in scores:
            log(f"evaluate: baseline {name!r} was not scored, no differences to it")

    segment = item_segments(exposure_counts(dataset), config.tail_below, config.head_share)
    records: list[Record] = []
    differences: list[Record] = []
    tests: list[TestExtra] = []
    extra: dict[str, PoolExtra] = {}
    pools = list(_pools(dataset.pools.take(rows), segment, seed))
    against = {name: _references(name, scores, named, config) for name in methods}
    held = list(dict.fromkeys(one for wanted in against.values() for one in wanted))
    references: dict[str, _Measured] = {}
    work = [(pool, name) for pool in pools for name in dict.fromkeys([*held, *methods])]
    for pool, name in track(work, "evaluate"):
        is_logit, in_pool = name not in labels, methods[name][:, pool.rows]
        if pool.name not in extra:
            extra[pool.name] = _pool_extra(pool)
            references = {
                one: _measure(pool, methods[one][:, pool.rows], embeddings, config, True)
                for one in held
            }
        measured = references.get(name) or _measure(pool, in_pool, embeddings, config, is_logit)
        if on_measured is not None:
            on_measured(pool.name, name, pool.users, measured.sums)
        drawn = _drawn(measured, config, seed)
        records += _records(pool, name, measured, drawn, config)
        for reference in against[name]:
            less = _difference(measured, references[reference])
            drawn = _drawn(less, config, seed)
            title = f"{name} - {reference}"
            differences += _records(pool, title, less, drawn, config, least=-1.0)
            tests += _tests(pool, name, reference, less, drawn, config)
        if is_logit:
            extra[pool.name]["reliability"][name] = _reliability(
                in_pool[0], pool.click, config.ece_bins
            )

    place = {name: i for i, name in enumerate(methods)}
    order = {name: i for i, name in enumerate(p.name for p in pools)}
    about: EvaluationExtra = {
        "config": config.model_dump(mode="json"),
        "seed": seed,
        "methods": list(methods),
        "label_scores": list(labels),
        "segment_items": {
            name: int((segment == code).sum()) for code, name in enumerate(SEGMENTS) if code
        },
        "pools": extra,
        "tests": _corrected(tests, dict(ordered_roles(list(methods), list(labels), config))),
    }
    return Report(
        records=tuple(sorted(records, key=lambda r: (order[r.pool], place[r.method]))),
        differences=tuple(
            sorted(differences, key=lambda r: (order[r.pool], place[r.method.split(" - ")[0]]))
        ),
        extra={"evaluation": about},
    )


def _check(methods: Mapping[str, Scores], n_rows: int) -> None:
    many = {len(values) for values in methods.values() if values.ndim == 2} - {1}
    for name, values in methods.items():
        if values.ndim != 2 or values.shape[1] != n_rows or not len(values):
            must = f"(seeds, {n_rows}): one column a test row of the pools"
            raise DataError("scores have the wrong shape", where=name, must=must, got=values.shape)
        if not np.isfinite(values).all():
            raise DataError("scores hold NaN or infinity", where=name)
    if len(many) > 1:
        raise DataError(
            "methods differ in their number of training seeds",
            where="scores",
            must="one number for all methods, or 1",
            got=sorted(many),
            hint="differences are paired by training seed",
        )


def _pools(pools: Pools, segment: NDArray[np.int8], seed: int) -> Iterator[_Pool]:
    """Yield the pools that have rows, in the order of their codes."""
    spread = seeds.rng(seed, "evaluation", "ties").permutation(len(segment))
    for code, name in enumerate(pools.pools):
        rows = np.flatnonzero(pools.pool == code)
        if not len(rows):
            continue
        item, request = pools.item[rows], pools.request[rows]
        # An item's place among ties differs from request to request and between seeds.
        tie = (spread[item] + request * 2_654_435_761) % len(segment)
        rows = rows[np.lexsort((item, tie, request, pools.user[rows]))]
        item = pools.item[rows]
        users, user = np.unique(pools.user[rows], return_inverse=True)
        requests, first, of_request = np.unique(
            pools.request[rows], return_index=True, return_inverse=True
        )
        owner = user[first]
        split = np.flatnonzero(owner[of_request] != user)
        if len(split):
            raise DataError(
                "a request belongs to more than one user",
                where=f"pool {name}, request {requests[of_request[split[0]]]}",
            )
        available = np.zeros(len(segment), dtype=np.bool_)
        available[item] = True
        item_inside = {part: segment == number for number, part in enumerate(SEGMENTS) if number}
        item_inside = {"all": np.ones(len(segment), dtype=np.bool_), **item_inside}
        user, click = user.astype(np.int64), pools.click[rows]
        inside = {part: keep[item] for part, keep in item_inside.items()}
        kinds = click == 1, click != 1
        behind_auc = {
            part: min(int(np.count_nonzero(np.bincount(user[keep & kind]))) for kind in kinds)
            for part, keep in inside.items()
        }
        yield _Pool(
            name=name,
            rows=rows,
            user=user,
            users=users,
            request=of_request.astype(np.int64),
            owner=owner.astype(np.int64),
            item=item.astype(np.int64),
            click=click,
            inside=inside,
            available=available,
            item_inside=item_inside,
            behind_auc=behind_auc,
        )


def _pool_extra(pool: _Pool) -> PoolExtra:
    clicked = pool.click == 1
    parts = SEGMENTS[1:]
    total, clicks = len(pool.rows), int(clicked.sum())
    inside = {part: int(pool.inside[part].sum()) for part in parts}
    return {
        "rows": total,
        "users": pool.n_users,
        "requests": pool.n_requests,
        "items": int(pool.available.sum()),
        "clicks": clicks,
        "segments": inside,
        "shares": {
            "candidates": {part: inside[part] / total for part in parts},
            "clicks": {
                part: int((pool.inside[part] & clicked).sum()) / max(1, clicks) for part in parts
            },
        },
        "reliability": {},
    }


def _measure(
    pool: _Pool,
    scores: Scores,
    embeddings: ItemEmbeddings | None,
    config: EvaluateConfig,
    is_logit: bool,
) -> _Measured:
    """Compute all metrics of one method on one pool; ``scores`` is (S, N) in the pool's order."""
    # NumPy sorts and gathers outside of the interpreter's lock.
    with ThreadPoolExecutor(THREADS) as threads:
        by_seed = list(
            threads.map(lambda one: _measure_seed(pool, one, embeddings, config, is_logit), scores)
        )
    sums, whole = zip(*by_seed, strict=True)
    return _Measured(
        sums={key: significance.stack([one[key] for one in sums]) for key in sums[0]},
        whole={key: np.array([one[key] for one in whole]) for key in whole[0]},
    )


def _measure_seed(
    pool: _Pool,
    score: Scores,
    embeddings: ItemEmbeddings | None,
    config: EvaluateConfig,
    is_logit: bool,
) -> tuple[dict[Key, UserSums], dict[Key, float]]:
    size, click, n_users = config.list_size, pool.click, pool.n_users
    ranking = metrics.rank_rows(score, pool.request, pool.n_requests)
    by_user = ranking.order if pool.one_request_a_user else metrics.sort_rows(score, pool.user)
    by_score = metrics.sort_rows(score)
    frequency, listed = metrics.list_frequency(ranking, pool.item, len(pool.available), size)
    probability = metrics.sigmoid(score)
    users = np.arange(n_users)
    sums: dict[Key, UserSums] = {}
    whole: dict[Key, float] = {("all", f"gini@{size}"): metrics.gini(frequency[pool.available])}
    for part, inside in pool.inside.items():
        kept = by_score[inside[by_score]]
        sums[part, "auc"] = significance.auc_sums(pool.user, click, score, kept, n_users)
        if is_logit:
            whole[part, "ece"] = metrics.expected_calibration_error(
                probability[kept], click[kept], config.ece_bins
            )
        kept = by_user[inside[by_user]]
        of_user = metrics.user_auc(pool.user, click, score, kept, n_users)
        sums[part, "gauc"] = significance.user_sums(of_user, users, n_users)
        positive = inside & (click == 1)
        for k in config.ks:
            hits = metrics.hit_rate(ranking, positive, k)
            sums[part, f"hr@{k}"] = significance.user_sums(hits, pool.owner, n_users)
        gain = metrics.ndcg(ranking, positive, size)
        sums[part, f"ndcg@{size}"] = significance.user_sums(gain, pool.owner, n_users)
        available = pool.available & pool.item_inside[part]
        whole[part, f"coverage@{size}"] = metrics.coverage(listed, available)
        if part != "all":
            whole[part, f"share@{size}"] = float(frequency[available].sum() / frequency.sum())
    if embeddings is not None:
        spread = metrics.intra_list_diversity(ranking, pool.item, embeddings.vectors, size)
        sums["all", f"ild@{size}"] = significance.user_sums(spread, pool.owner, n_users)
    return sums, whole


def _difference(method: _Measured, baseline: _Measured) -> _Measured:
    """Return method minus baseline, paired by user and seed, where both have the metric."""
    sums = {k: v.minus(baseline.sums[k]) for k, v in method.sums.items() if k in baseline.sums}
    whole = {k: v - baseline.whole[k] for k, v in method.whole.items() if k in baseline.whole}
    return _Measured(sums, whole)


def _keys(config: EvaluateConfig) -> list[Key]:
    """Return every (segment, metric) of a report, in its order."""
    size = config.list_size
    of_rows = ["auc", "gauc", *(f"hr@{k}" for k in config.ks), f"ndcg@{size}"]
    everywhere = [*of_rows, "ece", f"coverage@{size}"]
    whole_lists = [f"gini@{size}", f"ild@{size}"]
    return [
        (part, metric)
        for part in SEGMENTS
        for metric in [*everywhere, *(whole_lists if part == "all" else [f"share@{size}"])]
    ]


def _references(
    name: str, scores: Mapping[str, Scores], named: Sequence[str], config: EvaluateConfig
) -> list[str]:
    """Return what ``name`` is compared with: the baselines, and what else decides about it.

    The main method is held against the history control too (does the LLM help?), and a variant
    against the method that it varies.
    """
    wanted = list(named)
    if name == config.method:
        wanted.append(config.history_control)
    base, at, _ = name.partition(AT)
    if at:
        wanted.append(base)
    return [one for one in dict.fromkeys(wanted) if one in scores and one != name]


def _drawn(
    measured: _Measured, config: EvaluateConfig, seed: int
) -> dict[Key, significance.Values]:
    """Return the bootstrap draws of every metric that is a mean over users."""
    sums = list(measured.sums.values())
    found = significance.bootstrap_values(sums, config.n_resamples, seed)
    return dict(zip(measured.sums, found, strict=True))


def tested(config: EvaluateConfig) -> tuple[str, ...]:
    """Return the metrics that methods and runs are compared on, user by user."""
    return "gauc", "auc", f"hr@{max(config.ks)}", f"ndcg@{config.list_size}"


def _tests(
    pool: _Pool,
    method: str,
    reference: str,
    less: _Measured,
    drawn: Mapping[Key, significance.Values],
    config: EvaluateConfig,
) -> list[TestExtra]:
    """Return the paired comparison of two methods on the metrics people decide by."""
    wanted = tested(config)
    found: list[TestExtra] = []
    for (segment, metric), sums in less.sums.items():
        if metric not in wanted or not len(drawn[segment, metric]):
            continue
        n_users = _users_behind(pool, segment, metric, sums)
        found.append(
            {
                "method": method,
                "reference": reference,
                "pool": pool.name,
                "segment": segment,
                "metric": metric,
                "p": significance.p_value(drawn[segment, metric], n_users),
                "p_holm": None,
                **_won_tied_lost(metric, sums),
            }
        )
    return found


def _users_behind(pool: _Pool, segment: str, metric: str, sums: significance.UserSums) -> int:
    return pool.behind_auc[segment] if metric == "auc" else sums.n


def _won_tied_lost(metric: str, less: significance.UserSums) -> UsersExtra:
    """Count the users by the sign of their difference, the mean over the training seeds."""
    if metric == "auc":  # its sums are the users' influence on one value of all
        return {"better": None, "tied": None, "worse": None}
    by_user = (less.num.mean(axis=0) / np.maximum(less.den, 1))[less.den > 0]
    better, worse = int((by_user > SAME).sum()), int((by_user < -SAME).sum())
    return {"better": better, "tied": len(by_user) - better - worse, "worse": worse}


def _corrected(tests: list[TestExtra], roles: Mapping[str, Role]) -> list[TestExtra]:
    """Return the tests with Holm's correction of those that have a p-value.

    One family is all methods in competition against one reference, on one metric, segment and
    pool; the variants of a run are a family of their own.
    """
    families: dict[tuple[str, ...], list[int]] = {}
    p_of = {place: test["p"] for place, test in enumerate(tests) if test["p"] is not None}
    for place in p_of:
        test = tests[place]
        role = roles[test["method"]]
        is_variant = role == "variant" and test["method"].partition(AT)[0] == test["reference"]
        if not is_variant and role not in COMPETING:
            continue
        kind = "" if is_variant else test["reference"]
        family = (kind, test["pool"], test["segment"], test["metric"])
        families.setdefault(family, []).append(place)
    found = list(tests)
    for places in families.values():
        corrected = significance.holm([p_of[place] for place in places])
        for place, p in zip(places, corrected, strict=True):
            found[place] = {**tests[place], "p_holm": p}
    return found


def _records(
    pool: _Pool,
    method: str,
    measured: _Measured,
    drawn: Mapping[Key, significance.Values],
    config: EvaluateConfig,
    *,
    least: float = 0.0,
) -> list[Record]:
    """Turn measurements into records with intervals, none of them reaching below ``least``."""
    records = []
    for segment, metric in _keys(config):
        key = segment, metric
        values, n, interval, why = np.array([np.nan]), 0, None, ""
        if key in measured.sums:
            sums = measured.sums[key]
            n_users = _users_behind(pool, segment, metric, sums)
            values, n = sums.values(), round(float(sums.den.sum()))
            n = n if n_users >= LEAST_USERS else n_users  # an interval is of users, not requests
            interval = significance.percentiles(drawn[key], config.interval)
            why = FEW_USERS
        elif key in measured.whole:
            few = pool.n_users < LEAST_USERS
            values, n = measured.whole[key], pool.n_users if few else pool.n_requests
            interval, why = significance.seed_interval(values, config.interval), ONE_SEED
        value: float | None = float(values.mean())
        if np.isnan(values).any():
            value, n, interval, why = None, 0, None, _why_undefined(pool, segment, metric)
        low, high = interval or (None, None)
        most = 2.0 if metric.startswith("ild") else 1.0  # of differences too, in absolute terms
        records.append(
            Record(
                method,
                pool.name,
                segment,
                metric,
                value,
                None if low is None else max(low, least * most),
                None if high is None else min(high, most),
                n,
                len(values),
                "" if interval else why,
            )
        )
    return records


def _why_undefined(pool: _Pool, segment: str, metric: str) -> str:
    if not pool.inside[segment].any():
        return "no row of the pool lies in this segment"
    reasons = {
        "auc": "the rows lack clicked or not clicked ones",
        "gauc": "no user with both clicked and not clicked rows",
        "hr": "no request with clicked and not clicked rows, and more rows than the list is long",
        "ndcg": "no request with both clicked and not clicked rows",
        "ild": "no item embeddings, or no request with two items",
        "ece": "the score is no logit",
    }
    return reasons[metric.split("@")[0]]


def _reliability(score: Scores, click: NDArray[np.int8], n_bins: int) -> list[Bin]:
    bins = metrics.calibration_bins(metrics.sigmoid(score), click, n_bins)
    return [
        {"predicted": float(p), "clicked": float(c), "n": int(n)}
        for n, p, c in zip(*bins, strict=True)
    ]
