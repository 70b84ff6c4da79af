"""From tables of raw ids to a Dataset: vocabularies, indices, split, histories, pools.

Every reader returns `Logs`; everything that follows is decided here, once for all sources.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import unescape
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prerank.artifacts import (
    TEST,
    TRAIN,
    UNKNOWN_CLICK,
    VALIDATION,
    ByteArray,
    Candidates,
    Catalog,
    CodeLists,
    Cuts,
    Dataset,
    Exposures,
    Features,
    FloatArray,
    Interactions,
    TextArray,
    TimeArray,
    TimeUnit,
    places_of,
)
from prerank.data.config import PoolsConfig, SplitConfig
from prerank.data.ids import indices, vocabulary
from prerank.data.negatives import popularity_weights
from prerank.data.pools import Columns, exposed_rows, join_pools, positives_of, sampled_rows
from prerank.data.simulated import Negatives, simulated_exposures
from prerank.data.split import (
    NO_CUTS,
    check_leaks,
    given_cuts,
    random_split,
    split_at,
    temporal_cuts,
    training_ends,
)
from prerank.data.unexposed import contains, pair_keys, pairs_of, sorted_unique
from prerank.errors import DataError
from prerank.seeds import rng
from prerank.vocabulary import Vocabulary

ENTITY = r"&(?:[A-Za-z][A-Za-z0-9]*|#[0-9]+|#[xX][0-9A-Fa-f]+);"
CATEGORICAL, NUMERIC, MULTI_VALUED, SEQUENCE, VECTOR = "c:", "n:", "m:", "q:", "v:"
KINDS = (CATEGORICAL, NUMERIC, MULTI_VALUED, SEQUENCE, VECTOR)
OWN_FIELDS = ("user id", "item id", "content", "history ids", "history content", "numbers")
"""What a pre-ranker reads besides features (`ranking.inputs`)."""
NOTHING = np.zeros(0, dtype=np.int64)
NO_INTERACTIONS = {"user": pl.String, "item": pl.String, "time": pl.Int64}


@dataclass(frozen=True, eq=False)
class Logs:
    """What a reader returns: polars frames of raw ids (text or integers).

    Attributes:
        name: name of the data set.
        time_unit: unit of every ``time`` column; ``none``: the columns are absent.
        items: ``item``, ``title``, ``text``, ``image`` where known (path or URI, never null),
            features as ``c:name`` (text), ``n:name``
            (numbers), ``m:name`` and ``q:name`` (lists of text: multi-valued, sequence) and
            ``v:name`` (arrays of numbers).
        exposures: ``user``, ``item`` and, where known, ``request``, ``time``, ``click`` (1, 0,
            null), ``position``, ``propensity``, ``split`` (0, 1, 2: then taken as it is).
        users: ``user`` and features; users without a row have no features.
        candidates: ``user``, ``item`` and, where known, ``request``, ``time``, ``stage`` (code),
            ``score``, ``truth``.
        interactions: ``user``, ``item``, ``time``, known apart from the exposures; rows of one
            user and moment keep their order.
        clicks_are_interactions: clicked exposures join the interactions.
        pools: name -> ``split``, ``request``, ``user``, ``item``, ``click`` and ``time``: pools
            with the truth that come with the data.
        negatives: the exposures are positives only, each a request: simulate these beside them.
        exposed_pool: make the pool of held-out exposures.
        sampled_pools: our names of the uniform and of the popular sampled pool; empty: none.
        vectors: (rows of ``items``, D) float32 given by the user, NaN rows where missing.
        stages: names of the candidates' stage codes.
        cuts: moments that the source itself dictates.
        notes: what a reader of results must know.
    """

    name: str
    time_unit: TimeUnit
    items: pl.DataFrame
    exposures: pl.DataFrame
    users: pl.DataFrame | None = None
    candidates: pl.DataFrame | None = None
    interactions: pl.DataFrame | None = None
    clicks_are_interactions: bool = True
    pools: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    negatives: Negatives | None = None
    exposed_pool: bool = True
    sampled_pools: tuple[str, ...] = ("unexposed-uniform", "unexposed-popular")
    vectors: FloatArray | None = None
    stages: tuple[str, ...] = ("recalled",)
    cuts: Cuts = NO_CUTS
    notes: tuple[str, ...] = ()


def assemble(logs: Logs, split: SplitConfig, pools: PoolsConfig, seed: int) -> Dataset:
    """Build the Dataset and check it.

    Args:
        logs: what a reader returned.
        split: the split, used unless the exposures carry one.
        pools: sizes of the sampled pools.
        seed: root seed of the random split and of the sampled negatives.

    Raises:
        DataError: an id is unknown, the log is too short to be cut, training has no positive, or
            the split leaks.
    """
    frames = [f for f in (logs.exposures, logs.candidates, logs.interactions) if f is not None]
    known = [f["user"] for f in (*frames, *logs.pools.values())]
    users = vocabulary([*known, *([] if logs.users is None else [logs.users["user"]])])
    items = vocabulary([logs.items["item"]])
    notes = list(logs.notes)

    shown, offered, liked = (
        _indexed(frame, users, items, logs.time_unit, name)
        for name, frame in (
            ("exposures", logs.exposures),
            ("candidates", logs.candidates),
            ("interactions", logs.interactions),
        )
    )
    shown["request"], offered["request"] = _requests(shown, offered, logs)
    if logs.time_unit == "none" and "split" not in shown:
        notes.append("no time: exposures are split at random, histories are sets")
    period, cuts = _periods(shown, logs, split, seed)
    n_train, _, n_test = np.bincount(period, minlength=3).tolist()
    n_judged = sum(int((frame["split"] == TEST).sum()) for frame in logs.pools.values())
    require_periods(n_train, n_test + n_judged, given="split" in shown)
    if logs.negatives is not None:
        luck = rng(seed, "simulated exposures")
        shown = simulated_exposures(shown, liked, period, len(items), logs.negatives, luck)
        period = shown["split"]
        notes.append(logs.negatives.note())
    exposures = exposures_of(shown, period)
    if not len(liked["user"]):
        require_clicks(n_training_clicks(exposures))
    by_period = known_by_period(exposures)
    by_period[TEST] += n_judged
    notes += known_or_note(by_period)
    interactions, n_late = interactions_of(
        exposures, liked, cuts, logs.time_unit, logs.clicks_are_interactions
    )
    ends = training_ends(exposures, len(users), cuts, logs.time_unit)
    held = _held_out_requests(logs, exposures)
    candidates, n_after = candidates_of(offered, ends, logs.stages, held)
    notes += left_out_notes(n_late, n_after)
    # A simulated negative may stand in a pool: the target may have been one as well.
    real = exposures if logs.negatives is None else exposures.take(exposures.click == 1)
    met = sorted_unique(
        np.concatenate(
            [
                pair_keys(interactions.user, interactions.item),
                pair_keys(real.user, real.item),
            ]
        )
    )
    parts: list[tuple[str, Columns]] = []
    if logs.exposed_pool:
        parts.append(("exposed", exposed_rows(exposures)))
    if logs.sampled_pools:
        positives, n_known = positives_of(real, interactions)
        notes += known_notes(n_known)
        train = interactions.item
        for name, power in zip(logs.sampled_pools, (0.0, pools.popularity_power), strict=True):
            weights = popularity_weights(train, len(items), power)
            parts.append((name, sampled_rows(name, positives, met, weights, pools, seed)))
        notes.append(pools_note(logs.sampled_pools, pools))
    for name, frame in logs.pools.items():
        rows = _indexed(frame, users, items, logs.time_unit, f"pool {name}")
        parts.append((name, rows))
    idle = len(users) - len(sorted_unique(np.concatenate([exposures.user, interactions.user])))
    notes += idle_notes(idle, len(users))

    dataset = Dataset(
        name=logs.name,
        time_unit=logs.time_unit,
        users=users,
        items=items,
        user_features=features_of(logs.users, "user", users),
        catalog=catalog_of(logs, items),
        exposures=exposures,
        candidates=candidates,
        interactions=interactions,
        pools=join_pools(parts),
        cuts=cuts,
        notes=tuple(notes),
    )
    check_leaks(dataset)
    return dataset


def _indexed(
    frame: pl.DataFrame | None, users: Vocabulary, items: Vocabulary, unit: TimeUnit, where: str
) -> dict[str, NDArray[Any]]:
    """Return a frame's columns as arrays, users and items as indices, time always there."""
    if frame is None:
        frame = pl.DataFrame(schema=NO_INTERACTIONS)
    raw = [name for name in frame.columns if name not in ("user", "item", "request", "click")]
    columns: dict[str, NDArray[Any]] = {name: frame[name].to_numpy() for name in raw}
    columns["user"] = indices(frame["user"], users, where)
    columns["item"] = indices(frame["item"], items, where)
    if "click" in frame.columns:
        columns["click"] = frame["click"].cast(pl.Int8).fill_null(-1).to_numpy()
    if "request" in frame.columns:
        request = frame["request"]
        columns["request"] = request.to_numpy()
    if unit == "none" or "time" not in columns:
        columns["time"] = np.zeros(len(frame), dtype=np.int64)
    return columns


def _requests(
    shown: dict[str, NDArray[Any]], offered: dict[str, NDArray[Any]], logs: Logs
) -> tuple[TimeArray, TimeArray]:
    """Return request codes of exposures and candidates, one numbering for both.

    A table without request ids: the rows of one user at one moment are a request.
    """
    tables = (shown, offered)
    named = [
        pl.Series("request", t["request"]) for t in tables if "request" in t and len(t["user"])
    ]
    names = pl.concat([s.cast(pl.String) for s in named]).unique().sort() if named else None
    moments = sorted_unique(np.concatenate([table["time"] for table in tables]))
    keys = [
        t["user"].astype(np.int64) * len(moments) + np.searchsorted(moments, t["time"])
        for t in tables
    ]
    unnamed = [k for k, t in zip(keys, tables, strict=True) if "request" not in t]
    distinct = sorted_unique(np.concatenate(unnamed)) if unnamed else np.zeros(0, np.int64)
    start = 0 if names is None else len(names)

    def codes(table: dict[str, NDArray[Any]], key: TimeArray) -> TimeArray:
        if "request" not in table:
            return (start + np.searchsorted(distinct, key)).astype(np.int64)
        if names is None:
            return np.zeros(len(key), dtype=np.int64)
        text = pl.Series("request", table["request"]).cast(pl.String)
        order = pl.Series(np.arange(len(names), dtype=np.int64))
        return text.replace_strict(names, order, return_dtype=pl.Int64).to_numpy()

    return codes(shown, keys[0]), codes(offered, keys[1])


def _periods(
    shown: dict[str, NDArray[Any]], logs: Logs, config: SplitConfig, seed: int
) -> tuple[ByteArray, Cuts]:
    """Return each exposure's split, and the cuts."""
    n, time = len(shown["user"]), shown["time"].astype(np.int64)
    if "split" in shown:
        split = shown["split"].astype(np.int8)
        is_timed = logs.time_unit == "ms"
        return split, given_cuts(time, split, config.anchor_fraction) if is_timed else NO_CUTS
    if logs.time_unit == "none":
        grouped = "request" in logs.exposures.columns
        group = shown["request"] if grouped else np.arange(n, dtype=np.int64)
        return random_split(group, config, rng(seed, "split")), NO_CUTS
    cuts = temporal_cuts(time, config, logs.cuts)
    return split_at(time, cuts), cuts


def require_periods(n_train: int, n_test: int, *, given: bool) -> None:
    """Raise DataError if nothing is left to learn from or to judge by.

    Args:
        n_train, n_test: exposures of both periods, of the test the pools' rows too.
        given: the exposures carry their split.
    """
    if not n_train or not n_test:
        raise DataError(
            f"the split leaves no {'test' if n_train else 'training'} exposures",
            where="exposures -> split" if given else "exposures",
            must="exposures in training and test",
            got=f"{n_train} / {n_test} rows",
            hint="name rows of each period" if given else "a longer log, or other split fractions",
        )


def exposures_of(shown: dict[str, NDArray[Any]], split: ByteArray) -> Exposures:
    """Return the exposures of indexed columns; what is not there is unknown."""
    n = len(split)

    def column(name: str, default: float, kind: type[Any]) -> NDArray[Any]:
        values = shown.get(name)
        if values is None:
            return np.full(n, default, kind)
        # A column of whole numbers with gaps comes as floats.
        return np.where(np.isnan(values), default, values).astype(kind)

    return Exposures(
        request=shown["request"],
        user=shown["user"],
        item=shown["item"],
        time=shown["time"].astype(np.int64),
        click=column("click", -1, np.int8),
        position=column("position", -1, np.int32),
        propensity=column("propensity", np.nan, np.float32),
        split=split,
    )


def n_training_clicks(exposures: Exposures) -> int:
    """Return how many exposures of training are clicked."""
    return int(((exposures.split == TRAIN) & (exposures.click == 1)).sum())


def require_clicks(n_clicks: int) -> None:
    """Raise DataError if a log without other positives has no click in training: nothing to learn.

    Args:
        n_clicks: clicked exposures of training.
    """
    if not n_clicks:
        raise DataError(
            "no click is known in training",
            where="exposures -> click",
            must="a click of 1 before validation, or positives in a table `interactions`",
            got="clicks of 0 or unknown only",
            hint="check which column is read as the click; for own logs it may be mapped with "
            'logs.exposures.columns = {click = "yours"}',
        )


def known_by_period(exposures: Exposures) -> NDArray[np.int64]:
    """Return (3,) int64: the exposures of training, validation and test with a known click."""
    return np.bincount(exposures.split[exposures.click != UNKNOWN_CLICK], minlength=3)


def known_or_note(n_known: NDArray[np.int64]) -> list[str]:
    """Raise DataError where no click is known to learn from or to judge by; note if to choose by.

    Args:
        n_known: (3,) rows of each period with a known click.
    """
    for period, name in ((TRAIN, "training"), (TEST, "the test period")):
        if not n_known[period]:
            raise DataError(
                f"every click of {name} is unknown",
                where="exposures -> click",
                must="rows with a click of 1 or 0 in training and test",
                got="unknown clicks only",
                hint="0: seen and not clicked, null or no column: unknown; a column of another "
                'name is mapped with logs.exposures.columns = {click = "yours"}',
            )
    if n_known[VALIDATION]:
        return []
    return ["no click of validation is known: nothing is chosen or stopped by it"]


def interactions_of(
    exposures: Exposures,
    liked: dict[str, NDArray[Any]],
    cuts: Cuts,
    time_unit: TimeUnit,
    clicks_are_interactions: bool,
) -> tuple[Interactions, int]:
    """Return all positives that a history may hold, by user and time, and how many were late."""
    # With real times a validation click is history for test rows; otherwise it is held out.
    allowed = exposures.split != TEST if time_unit == "ms" else exposures.split == TRAIN
    clicked = allowed & (exposures.click == 1) & clicks_are_interactions
    user = np.concatenate([liked["user"], exposures.user[clicked]])
    item = np.concatenate([liked["item"], exposures.item[clicked]])
    time = np.concatenate([liked["time"].astype(np.int64), exposures.time[clicked]])
    n_late = 0
    if time_unit == "ms" and cuts.test is not None:
        early = time < cuts.test
        n_late = int((~early).sum())
        user, item, time = user[early], item[early], time[early]
    if time_unit == "none":
        held = exposures.split != TRAIN
        held_keys = sorted_unique(pair_keys(exposures.user[held], exposures.item[held]))
        key = sorted_unique(pair_keys(user, item))
        key = key[~contains(held_keys, key)]
        user, item = pairs_of(key)
        time = np.zeros(len(key), dtype=np.int64)
    order = np.lexsort((time, user))
    return Interactions(user=user[order], item=item[order], time=time[order]), n_late


def _held_out_requests(logs: Logs, exposures: Exposures) -> TimeArray:
    """Return the sorted codes of requests that no exposure of training belongs to, without time.

    None where requests are not named: what a user saw without a time is no request.
    """
    tables = [frame for frame in (logs.exposures, logs.candidates) if frame is not None]
    if logs.time_unit != "none" or not all("request" in frame.columns for frame in tables):
        return NOTHING
    train = sorted_unique(exposures.request[exposures.split == TRAIN])
    every = sorted_unique(exposures.request)
    return every[~contains(train, every)]


def candidates_of(
    offered: dict[str, NDArray[Any]],
    ends: TimeArray | None,
    stages: tuple[str, ...],
    held_out: TimeArray = NOTHING,
) -> tuple[Candidates, int]:
    """Return the candidates of training requests, and how many others were left out.

    ``ends``: of `training_ends`; ``held_out``: sorted codes of requests, where there is no time.
    What a held-out request recalled is a fact of its own time: it holds the target more often than
    chance would.
    """
    n = len(offered["user"])
    keep = ~contains(held_out, offered["request"])
    if ends is not None and "time" in offered:
        keep = offered["time"] < ends[offered["user"]]

    def column(name: str, default: float, kind: type[Any]) -> NDArray[Any]:
        values = offered.get(name)
        return np.full(n, default, kind)[keep] if values is None else values[keep].astype(kind)

    candidates = Candidates(
        request=offered["request"][keep],
        user=offered["user"][keep],
        item=offered["item"][keep],
        time=column("time", 0, np.int64),
        stage=column("stage", 0, np.int8),
        score=column("score", np.nan, np.float32),
        truth=column("truth", np.nan, np.float32),
        stages=stages,
    )
    return candidates, int((~keep).sum())


def left_out_notes(n_late: int, n_after: int) -> list[str]:
    """Return the notes on interactions of the test period and candidates of held-out requests."""
    notes = []
    if n_late:
        notes.append(f"{n_late} interactions of the test period were left out")
    if n_after:
        notes.append(f"{n_after} candidates of held-out requests were left out")
    return notes


def known_notes(n_known: int) -> list[str]:
    """Return the note on clicked rows that no sampled pool holds."""
    if not n_known:
        return []
    return [f"{n_known} held-out clicks on items that their user had met are in no sampled pool"]


def idle_notes(n_idle: int, n_users: int) -> list[str]:
    """Return the note on users without any event."""
    if not n_idle:
        return []
    return [f"{n_idle} of {n_users} users have neither an exposure nor an interaction"]


def pools_note(names: tuple[str, ...], config: PoolsConfig) -> str:
    """Return the note on what sampled pools assume."""
    return (
        f"pools {' and '.join(names)}: a clicked item beside up to {config.n_negatives} items "
        "the user neither interacted with nor was shown (where there is one), drawn uniformly and "
        f"by (interactions + 1)^{config.popularity_power:g}; assumed negatives, nobody asked"
    )


def catalog_of(logs: Logs, items: Vocabulary) -> Catalog:
    """Return the items' content in the order of the vocabulary."""
    order = _order(logs.items["item"], items)
    sorted_items = logs.items[order]
    return Catalog(
        title=readable(sorted_items["title"]),
        text=readable(sorted_items["text"]),
        features=features_of(logs.items, "item", items),
        vectors=None if logs.vectors is None else np.ascontiguousarray(logs.vectors[order]),
        image=np.array(sorted_items["image"].to_list(), dtype=object)
        if "image" in sorted_items.columns
        else None,
    )


def readable(texts: pl.Series) -> TextArray:
    """Return texts (N,) with HTML entities, which shops export, as the characters they stand for.

    A missing text is empty.

    Left as they are, ``Pok&eacute;mon`` is three words to an encoder, and none of them Pokémon.
    """
    found: TextArray = np.array(texts.fill_null("").to_list(), dtype=object)
    for row in np.flatnonzero(texts.str.contains(ENTITY).fill_null(False).to_numpy()):
        found[row] = re.sub(ENTITY, lambda entity: unescape(entity[0]), found[row])
    return found


def _order(ids: pl.Series, vocabulary: Vocabulary) -> NDArray[np.int64]:
    """Return the row of each vocabulary entry in ``ids``, -1 where it has none."""
    row = np.full(len(vocabulary), -1, dtype=np.int64)
    row[indices(ids, vocabulary, "features")] = np.arange(len(ids))
    return row


def features_of(frame: pl.DataFrame | None, key: str, vocabulary: Vocabulary) -> Features:
    """Return the feature columns of a frame in the order of the vocabulary."""
    n = len(vocabulary)
    if frame is None:
        return Features(n_rows=n)
    _require_names(frame.columns, key)
    row = _order(frame[key], vocabulary)
    missing = row < 0
    categorical, categories, numeric, lists, vectors = {}, {}, {}, {}, {}
    for name in frame.columns:
        kind, short = name[:2], name[2:]
        if kind == CATEGORICAL:
            values = frame[name].cast(pl.String)
            distinct = values.drop_nulls().unique().sort()
            codes = values.cast(pl.Enum(distinct)).to_physical().cast(pl.Int32).fill_null(-1)
            categorical[short] = np.where(missing, -1, codes.to_numpy()[row]).astype(np.int32)
            categories[short] = tuple(distinct.to_list())
        elif kind == NUMERIC:
            numbers = frame[name].cast(pl.Float32).fill_null(np.nan).to_numpy()
            numeric[short] = np.where(missing, np.nan, numbers[row]).astype(np.float32)
        elif kind in (MULTI_VALUED, SEQUENCE):
            lists[short], categories[short] = _code_lists(frame[name], row, kind == SEQUENCE)
        elif kind == VECTOR:
            given = frame[name].to_numpy()
            vectors[short] = np.where(missing[:, None], np.float32(np.nan), given[row])
    return Features(n, categorical, categories, numeric, lists, vectors)


def _require_names(columns: Sequence[str], key: str) -> None:
    """Raise DataError for features that a pre-ranker could not tell from each other or its own."""
    names = [name[2:] for name in columns if name[:2] in KINDS]
    for name in names:
        twice, own = names.count(name) > 1, name in OWN_FIELDS
        if twice or own:
            raise DataError(
                "two features share a name"
                if twice
                else "a feature has the name of a field of ours",
                where=f"{key}s -> {name}",
                must="a name of its own",
                got=f"{name!r}, in two kinds" if twice else repr(name),
                hint="rename the column" + (", or name it in one kind only" if twice else ""),
            )


def _code_lists(
    values: pl.Series, row: NDArray[np.int64], ordered: bool
) -> tuple[CodeLists, tuple[str, ...]]:
    """Return lists of text as codes, the lists in the order of ``row`` (-1: empty)."""
    length = values.list.len().fill_null(0).to_numpy().astype(np.int64)
    flat = values.filter(values.list.len() > 0).explode()
    distinct = flat.unique().sort()
    codes = flat.cast(pl.Enum(distinct)).to_physical().cast(pl.Int32).to_numpy()
    place, offsets = places_of(np.concatenate([[0], np.cumsum(length)]), row)
    return CodeLists(offsets, codes[place].astype(np.int32), ordered), tuple(distinct.to_list())
