"""The shops of a simulated A/B test: the world, or a known truth, behind one small interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prerank import seeds
from prerank.artifacts import (
    TEST,
    VALIDATION,
    ByteArray,
    Candidates,
    Catalog,
    Cuts,
    Dataset,
    Exposures,
    Features,
    IntArray,
    Interactions,
    Pools,
    TimeArray,
    require,
)
from prerank.data.simulate_config import TruthConfig
from prerank.data.truth import build_truth
from prerank.data.unexposed import pair_keys
from prerank.data.world import catalog_of, people_and_items
from prerank.data.world_cascade import (
    STAGES,
    Memory,
    Positives,
    Recall,
    Requests,
    Scorer,
    Shop,
    Traffic,
    draw_requests,
    organic_day,
    recall,
    serve_visits,
)
from prerank.data.world_model import DAY_MS, START_MS, World, build_world
from prerank.errors import ConfigError, DataError
from prerank.recipe import Recipe
from prerank.vocabulary import Vocabulary

PRODUCTION, ORACLE = "production", "oracle"
LEARNABLE, INTEREST = "oracle-learnable", "oracle-interest"
ORACLES_OF_WORLD: Mapping[str, Callable[[World, IntArray, IntArray], NDArray[np.float64]]] = {
    ORACLE: World.click_probability,
    LEARNABLE: World.utility,
    INTEREST: World.interest_of,
}
REFERENCES = (PRODUCTION, ORACLE)
REFERENCES_OF_WORLD = (PRODUCTION, *ORACLES_OF_WORLD)


@dataclass(frozen=True, eq=False)
class Market:
    """A shop with all that a simulated A/B test asks of it.

    Attributes:
        shop: who clicks what, and the funnel.
        blank: users, items and catalog; no logs.
        release: (I,) int64 UTC ms.
        first_day: the first day with requests; organic discovery alone before it.
        recall: the shop's recall.
        organic: day's positives that no recommendation led to.
        oracles: reference -> what it knows of pairs (user, item), any shape.
    """

    shop: Shop
    blank: Dataset
    release: TimeArray
    first_day: int
    recall: Recall
    organic: Callable[[Memory, int], Positives]
    oracles: Mapping[str, Callable[[IntArray, IntArray], NDArray[np.float64]]]

    def requests(self, day: int, n_requests: int) -> Requests:
        """Return the visits of ``day``: the same for every arm."""
        first = (day - self.first_day) * n_requests
        return draw_requests(self.shop, day, n_requests, first, once=False)

    def serve(
        self, memory: Memory, requests: Requests, day: int, prerank: Scorer | None
    ) -> Traffic:
        """Serve the visits of ``day``; None is the production pre-ranker."""
        return serve_visits(self.shop, self.recall, memory, requests, day, prerank)


def open_market(recipe: Recipe, prepared: Dataset | None, replication: int) -> Market:
    """Return the shop of one replication: the world, or the truth of ``prepared``."""
    seed = seeds.derive(recipe.seed, "simulate", replication)
    config = recipe.simulate
    # The world spreads releases over history, n_days and two more; ours end with the last day.
    n_days = config.n_log_days + config.n_days
    if prepared is None:
        settings = recipe.prepare.world.model_copy(update={"n_days": max(1, n_days - 2)})
        world = build_world(settings, seed)
        users, items, features = people_and_items(world)
        return Market(
            shop=world,
            blank=_blank("world", users, items, features, catalog_of(world)),
            release=world.release,
            first_day=settings.n_history_days,
            recall=lambda memory, requests, day: recall(world, memory, requests, day),
            organic=lambda memory, day: organic_day(world, memory, day),
            oracles={name: partial(known, world) for name, known in ORACLES_OF_WORLD.items()},
        )
    chosen = _sample_users(prepared, config.truth, seed)
    user, item, click = known_pairs(prepared, recipe)
    place = np.full(len(prepared.users), -1, dtype=np.int32)
    place[chosen] = np.arange(len(chosen), dtype=np.int32)
    kept = place[user] >= 0
    truth = build_truth(
        recipe.prepare.world,
        config.truth,
        len(chosen),
        len(prepared.items),
        place[user[kept]],
        item[kept],
        click[kept],
        config.truth.n_history_days + n_days,
        seed,
    )
    users = Vocabulary(prepared.users.ids[chosen])
    features = prepared.user_features.take(chosen)
    return Market(
        shop=truth,
        blank=_blank(prepared.name, users, prepared.items, features, prepared.catalog),
        release=truth.release,
        first_day=config.truth.n_history_days,
        recall=truth.recall,
        organic=truth.organic_day,
        oracles={ORACLE: truth.click_probability},
    )


def known_pairs(prepared: Dataset, recipe: Recipe) -> tuple[IntArray, IntArray, ByteArray]:
    """Return user, item and click (N,) of each pair with a known answer, each once.

    Raises:
        ConfigError: neither a truth file nor candidates with known truth.
        DataError: the file's columns, ids or clicks are wrong.
    """
    if recipe.simulate.truth.file:
        return _from_file(prepared, recipe.simulate.truth.file)
    rows = prepared.candidates
    known = np.flatnonzero(~np.isnan(rows.truth))
    if not len(known):
        raise ConfigError(
            "no shop can be simulated: nobody knows who would click what",
            where="simulate.truth.file",
            must="a Parquet file with user, item and click; or a prepare.source with known truth",
            got=recipe.prepare.source,
            hint='`prepare.source = "world"` simulates a shop of its own',
        )
    known = known[np.unique(pair_keys(rows.user[known], rows.item[known]), return_index=True)[1]]
    click = (rows.truth[known] >= 0.5).astype(np.int8)
    return rows.user[known], rows.item[known], click


def _from_file(prepared: Dataset, file: str) -> tuple[IntArray, IntArray, ByteArray]:
    try:
        frame = pl.read_parquet(file, columns=["user", "item", "click"])
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(
            "the truth cannot be read",
            where="simulate.truth.file",
            must="a Parquet file with the columns user, item, click",
            got=error,
        ) from None
    require(frame.null_count().sum_horizontal().item() == 0, "a null in the truth", where=file)
    pair = frame.select("user", "item")
    twice = frame.filter(pair.is_duplicated()).head(1).rows()
    require(not twice, "a pair is listed twice", where=file, must="each pair once", got=twice)
    click = frame["click"]
    is_number = click.dtype == pl.Boolean or click.dtype.is_numeric()
    answer = click.cast(pl.Float64).to_numpy() if is_number else np.full(len(click), np.nan)
    odd = np.flatnonzero((answer != 0) & (answer != 1))
    if len(odd):
        raise DataError(
            "the truth holds something else than clicks",
            where=f"{file} -> click, row {odd[0]}",
            must="0 or 1, or a boolean, in each row",
            got=click[int(odd[0])],
            hint="draw clicks from probabilities first: a simulation must know who clicks",
        )
    found = []
    for column, vocabulary in (("user", prepared.users), ("item", prepared.items)):
        ids = frame[column].cast(pl.String).to_list()
        index = vocabulary.lookup(ids)
        strange = [ids[row] for row in np.flatnonzero(index < 0)[:1]]
        what = f"a {column} of the truth is not in the data set"
        require(not strange, what, where=f"{file} -> {column}", got=strange)
        found.append(index)
    return found[0], found[1], answer.astype(np.int8)


def _sample_users(prepared: Dataset, config: TruthConfig, seed: int) -> NDArray[np.int64]:
    users = np.arange(len(prepared.users))
    if config.users != "all":
        period = VALIDATION if config.users == "validation" else TEST
        users = np.unique(prepared.pools.user[prepared.pools.split == period]).astype(np.int64)
    if not len(users):
        raise ConfigError(
            f"nobody lives in the shop: no pool of {config.users}",
            where="simulate.truth.users",
            must='"all", or a period that the data set has pools of',
            got=config.users,
        )
    if not config.n_users or config.n_users >= len(users):
        return users
    drawn = seeds.rng(seed, "truth", "users").choice(users, config.n_users, replace=False)
    return np.sort(drawn)


def _blank(
    name: str, users: Vocabulary, items: Vocabulary, features: Features, catalog: Catalog
) -> Dataset:
    """Return a data set of users and items without any log."""
    i64, i32 = np.zeros(0, np.int64), np.zeros(0, np.int32)
    i8, f32 = np.zeros(0, np.int8), np.zeros(0, np.float32)
    return Dataset(
        name=name,
        time_unit="ms",
        users=users,
        items=items,
        user_features=features,
        catalog=catalog,
        exposures=Exposures(i64, i32, i32, i64, i8, i32, f32, i8),
        candidates=Candidates(i64, i32, i32, i64, i8, f32, f32, STAGES),
        interactions=Interactions(i32, i32, i64),
        pools=Pools(np.zeros(0, np.int16), i8, i64, i32, i32, i64, i8, ()),
    )


def with_history(blank: Dataset, past: Positives, anchors_until: int) -> Dataset:
    """Return ``blank`` with the positives ``past``; anchors may see those before the day."""
    order = np.lexsort((past.item, past.time, past.user))
    cut = START_MS + anchors_until * DAY_MS
    return replace(
        blank,
        interactions=Interactions(past.user[order], past.item[order], past.time[order]),
        cuts=Cuts(anchors=cut),
    )
