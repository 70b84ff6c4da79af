"""A simulated shop with known truth: `simulate` writes its logs as a Dataset.

The world (who likes what) is in `world_model`, its traffic in `world_cascade`, its words in
`world_text`. Days run: history (organic only), training requests, one validation day, one test
day. docs/concepts/world.md tells the model and its knobs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prerank.artifacts import (
    TEST,
    VALIDATION,
    Candidates,
    Catalog,
    Cuts,
    Dataset,
    Exposures,
    Features,
    Interactions,
    Pools,
)
from prerank.data.unexposed import pair_keys
from prerank.data.world_cascade import (
    EXPOSED,
    STAGES,
    Memory,
    Positives,
    Requests,
    Scorer,
    Traffic,
    blank_memory,
    cascade,
    clicked,
    draw_requests,
    join,
    organic_day,
    remember,
    serve,
    serve_day,
)
from prerank.data.world_config import WorldConfig
from prerank.data.world_model import DAY_MS, START_MS, World, build_world
from prerank.data.world_text import CATEGORIES, CATEGORY_OF, brand_names, item_texts
from prerank.progress import track
from prerank.vocabulary import Vocabulary

__all__ = [
    "Memory",
    "Positives",
    "Requests",
    "Scorer",
    "Traffic",
    "World",
    "WorldConfig",
    "build_world",
    "cascade",
    "draw_requests",
    "exposure_share",
    "live",
    "serve",
    "serve_day",
    "simulate",
]

ACTIVITY = ("low", "medium", "high")


def simulate(config: WorldConfig, seed: int) -> Dataset:
    """Build a world, let its production cascade run, and return the logs with the truth.

    Args:
        config: sizes and strengths.
        seed: same config and seed, same bytes.

    Returns:
        time unit "ms". ``exposures`` of training, validation and test days; ``candidates`` of
        training days with their true click probability; ``interactions`` organic or clicked,
        before test; pools "exposed" (logged clicks) and "unexposed" (recalled, shown to that
        user in no request; click drawn from the known probability, looked at for sure).
    """
    world = build_world(config, seed)
    organic, served, _ = live(world)
    return _dataset(world, organic, served)


def live(world: World) -> tuple[Positives, list[Traffic], Memory]:
    """Let the world run under its production policy from the first day to the last.

    Returns:
        organic positives before the test day; the traffic of each day with requests (``n_days``
        of training, then validation, then test); and what production knows when the test day
        is over, from which a simulated A/B test can go on.
    """
    config = world.config
    n_train = max(1, round(config.n_users * config.requests_per_user / config.n_days))
    test_day = config.n_history_days + config.n_days + 1
    memory, next_request = blank_memory(world), 0
    organic: list[Positives] = []
    served: list[Traffic] = []
    for day in track(range(test_day + 1), "simulate days"):
        # Drawn before the day's clicks are known, like a morning's state of knowledge.
        found = organic_day(world, memory, day)
        if day >= config.n_history_days:
            held_out = day >= test_day - 1
            n_requests = config.n_eval_requests if held_out else n_train
            requests = draw_requests(world, day, n_requests, next_request, once=held_out)
            next_request += len(requests)
            traffic, memory = serve_day(world, memory, requests, day)
            served.append(traffic)
        memory = remember(memory, found.user, found.item)
        organic.append(found)
    return join(Positives, organic[:test_day]), served, memory


def catalog_of(world: World) -> Catalog:
    """Return what a shop's catalog says of the world's items."""
    config = world.config
    brands = brand_names(config.n_brands, world.seed)
    title, text = item_texts(world.subcategory, world.brand, brands, config.text_noise, world.seed)
    return Catalog(title, text, _item_features(world, brands))


def people_and_items(world: World) -> tuple[Vocabulary, Vocabulary, Features]:
    """Return the ids of users and items, and what a shop knows of its users."""
    config = world.config
    return _ids("u", config.n_users), _ids("i", config.n_items), _user_features(world)


def _dataset(world: World, organic: Positives, served: list[Traffic]) -> Dataset:
    config = world.config
    cuts = _cuts(config)
    train, validation, test = join(Traffic, served[:-2]), served[-2], served[-1]
    every = join(Traffic, served)
    taken = clicked(join(Traffic, served[:-1]))
    users, items, user_features = people_and_items(world)
    return Dataset(
        name="world",
        time_unit="ms",
        users=users,
        items=items,
        user_features=user_features,
        catalog=catalog_of(world),
        exposures=_exposures(every, cuts),
        candidates=Candidates(
            request=train.request,
            user=train.user,
            item=train.item,
            time=train.time,
            stage=train.stage,
            score=train.score,
            truth=train.truth,
            stages=STAGES,
        ),
        interactions=_interactions([organic, taken]),
        pools=_pools(every, (validation, test)),
        cuts=cuts,
        notes=_notes(world, train, test),
    )


def _cuts(config: WorldConfig) -> Cuts:
    first = START_MS + config.n_history_days * DAY_MS
    validation = first + config.n_days * DAY_MS
    return Cuts(anchors=first, validation=validation, test=validation + DAY_MS)


def _ids(letter: str, n: int) -> Vocabulary:
    width = len(str(n - 1))
    return Vocabulary(np.array([f"{letter}{index:0{width}d}" for index in range(n)]))


def _user_features(world: World) -> Features:
    """Activity by thirds: what a shop knows of its users without their taste."""
    place = np.argsort(np.argsort(world.activity, kind="stable"), kind="stable")
    return Features(
        n_rows=world.n_users,
        categorical={"activity": (place * len(ACTIVITY) // world.n_users).astype(np.int32)},
        categories={"activity": ACTIVITY},
    )


def _item_features(world: World, brands: tuple[str, ...]) -> Features:
    """Category, brand and price; the subcategory is told by the text only."""
    return Features(
        n_rows=world.n_items,
        categorical={"category": CATEGORY_OF[world.subcategory], "brand": world.brand},
        categories={"category": tuple(CATEGORIES), "brand": brands},
        numeric={"price": world.price.astype(np.float32)},
    )


def _exposures(every: Traffic, cuts: Cuts) -> Exposures:
    rows = np.flatnonzero(every.stage == EXPOSED)
    rows = rows[np.lexsort((every.position[rows], every.request[rows]))]
    moments = np.array([cuts.validation, cuts.test])
    return Exposures(
        request=every.request[rows],
        user=every.user[rows],
        item=every.item[rows],
        time=every.time[rows],
        click=every.click[rows],
        position=every.position[rows],
        propensity=every.propensity[rows],
        split=np.searchsorted(moments, every.time[rows], side="right").astype(np.int8),
    )


def _interactions(parts: list[Positives]) -> Interactions:
    rows = join(Positives, parts)
    order = np.lexsort((rows.item, rows.time, rows.user))
    return Interactions(rows.user[order], rows.item[order], rows.time[order])


def _pools(every: Traffic, held_out: tuple[Traffic, Traffic]) -> Pools:
    shown = every.stage == EXPOSED
    exposed_pairs = np.unique(pair_keys(every.user[shown], every.item[shown]))
    parts = []
    for split, traffic in zip((VALIDATION, TEST), held_out, strict=True):
        seen = traffic.stage == EXPOSED
        never = ~np.isin(pair_keys(traffic.user, traffic.item), exposed_pairs)
        parts.append(_pool(traffic, np.flatnonzero(seen), 0, split, traffic.click))
        parts.append(_pool(traffic, np.flatnonzero(never), 1, split, traffic.attractive))
    columns = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    return Pools(**columns, pools=("exposed", "unexposed"))


def _pool(
    traffic: Traffic, rows: NDArray[np.intp], pool: int, split: int, click: NDArray[np.int8]
) -> dict[str, NDArray[np.generic]]:
    return {
        "pool": np.full(len(rows), pool, dtype=np.int16),
        "split": np.full(len(rows), split, dtype=np.int8),
        "request": traffic.request[rows],
        "user": traffic.user[rows],
        "item": traffic.item[rows],
        "time": traffic.time[rows],
        "click": click[rows],
    }


def exposure_share(item: NDArray[np.int32], n_items: int, top: float = 0.1) -> float:
    """Return the share of exposures that go to the ``top`` most exposed part of all items."""
    counts = np.sort(np.bincount(item, minlength=n_items))[::-1]
    return float(counts[: max(1, round(top * n_items))].sum() / max(1, counts.sum()))


def _notes(world: World, train: Traffic, test: Traffic) -> tuple[str, ...]:
    shown = train.stage == EXPOSED
    top = exposure_share(train.item[shown], world.n_items)
    logged = train.click[shown].mean()
    return (
        "simulated world: users, items, policy and clicks are invented; figures say how a method "
        "behaves under known truth, not what it earns in a shop",
        f"clicks by a logistic of taxonomy, brand, price and quality; content_strength "
        f"{world.config.content_strength:g}",
        f"exposed click rate {logged:.3f} as logged, {train.truth[shown].mean():.3f} if all slots "
        f"were looked at; {train.truth[~shown].mean():.3f} among unexposed candidates",
        f"the most exposed tenth of the items takes {top:.0%} of the training exposures",
        "a recorded 0 may be an item that nobody looked at (position effect)",
        "pool unexposed: recalled in validation or test and shown to that user in no request; its "
        f"clicks ({test.attractive[test.stage != EXPOSED].mean():.3f} of unexposed test "
        "candidates) are drawn from the known probability",
        "propensity: chance of the ranker's exploration alone, given what the pre-ranker let "
        "through; items that it dropped had none",
    )
