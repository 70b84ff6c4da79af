"""prepare for own logs that are larger than memory: read in chunks, sorted into parts by user.

    distinct users -> chunks of rows, checked and indexed, spilled by part -> cuts -> part by part

The checks are those of `prerank.data.readers.logs`, chunk by chunk, and what follows is decided by
the functions of `prerank.data.assemble`, part by part. In memory are the users' and the items' ids,
the items table, one chunk or one part, and 17 bytes a clicked exposure that is held out.

Order: a part's exposures and candidates stand in the order of the files, parts in the order of
their users' ids; requests are numbered part by part.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prerank.artifacts import TEST, TRAIN, VALIDATION, Cuts, Dataset, TimeArray
from prerank.data.assemble import (
    Logs,
    candidates_of,
    catalog_of,
    exposures_of,
    features_of,
    idle_notes,
    interactions_of,
    known_by_period,
    known_notes,
    known_or_note,
    left_out_notes,
    n_training_clicks,
    pools_note,
    require_clicks,
    require_periods,
)
from prerank.data.config import LogsConfig, PrepareConfig
from prerank.data.negatives import weights_of
from prerank.data.pools import (
    Columns,
    exposed_rows,
    join_pools,
    picked_requests,
    positives_of,
    sampled_rows,
)
from prerank.data.readers.logs import (
    EventTable,
    Repeats,
    candidates_table,
    complain_of_order,
    event_columns,
    exposures_table,
    interactions_table,
    notes_of,
    one_user_a_request,
    raw_rows,
    read_items,
    read_users,
    require_alike,
    require_items,
    table_files,
    unit_notes,
)
from prerank.data.split import NO_CUTS, check_leaks, cuts_of, quantile, split_at, training_ends
from prerank.data.tables import Files, Rows, as_ids, as_time, inferred_unit, scan_file
from prerank.data.unexposed import pair_keys, sorted_unique
from prerank.parts import PART_ROWS, PartsWriter, blank, texts
from prerank.progress import log, track
from prerank.store import table_files as parquet_files
from prerank.vocabulary import Vocabulary

BINS = 1 << 20
REQUEST_SHARDS = 16
WIDE = (pl.UInt64, pl.Int128, pl.UInt128)  # may not fit int64
NAME, INDEX = "id", "index"


@dataclass(frozen=True)
class Source:
    """A table of events and its files."""

    spec: EventTable
    files: tuple[Path, ...]
    rows: tuple[int, ...]

    def chunks(self, size: int) -> Iterator[tuple[Path, int, int]]:
        """Yield file, first row and number of rows of each chunk, in order."""
        for file, n in zip(self.files, self.rows, strict=True):
            for first in range(0, n, size):
                yield file, first, min(size, n - first)

    def require_ids(self, file: Path) -> None:
        """Raise DataError if a file is empty or a column is missing or of no type for ids."""
        raw = raw_rows(file, self.spec, (0, 1))
        for ours in ("user", "item"):
            as_ids(raw[self.spec.theirs(ours)], file)

    def collect(self, query: pl.LazyFrame) -> pl.DataFrame:
        """Return the answer to a query over the files; a damaged file is named."""
        try:
            return query.collect(engine="streaming")
        except (pl.exceptions.PolarsError, OSError):
            for file, first, n in self.chunks(PART_ROWS):
                raw_rows(file, self.spec, (first, n))
            raise

    def column(self, file: Path, ours: str) -> pl.LazyFrame | None:
        """Return a query for one of our columns of a file; None if it is not there."""
        scan, theirs = scan_file(file), self.spec.theirs(ours)
        known = theirs in scan.collect_schema().names()
        return scan.select(pl.col(theirs).alias(ours)) if known else None


def sources(path: Path, config: PrepareConfig) -> list[Source]:
    """Return the tables of events that are there, their rows counted."""
    logs = config.logs
    shown = exposures_table(logs, config.split)
    files = table_files(path, shown.name, shown.table)
    timed = bool(files) and Source(shown, tuple(files), ()).column(files[0], "time") is not None
    found = []
    for spec in (shown, candidates_table(logs, timed), interactions_table(logs, timed)):
        files = table_files(path, spec.name, spec.table)
        counted = Files(tuple(files))
        found.append(Source(spec, counted.files, counted.rows))
    return found


def is_large(path: Path, config: PrepareConfig, part_rows: int = PART_ROWS) -> bool:
    """Say whether the logs are prepared in parts: more rows than one part holds, and with time.

    Logs that cannot be counted are left to the reader that names what is wrong.
    """
    if config.source != "logs" or not path.is_dir():
        return False
    try:
        found = sources(path, config)
        shown = found[0]
        timed = bool(shown.files) and shown.column(shown.files[0], "time") is not None
    except (pl.exceptions.PolarsError, OSError, ValueError):
        return False
    return timed and sum(sum(source.rows) for source in found) > part_rows


def prepare_parts(
    config: PrepareConfig, path: Path, seed: int, out: Path, work: Path, part_rows: int = PART_ROWS
) -> None:
    """Write the Dataset of own logs into the folder ``out``, part by part.

    Args:
        config: of the stage; its source is ``logs``.
        path: the folder of the tables; ``is_large`` says that they need this.
        seed: root seed of the sampled negatives.
        out: the artifact's folder.
        work: a folder for spilled rows; it is emptied at the end.
        part_rows: rows of events of a part, about, and of a chunk.

    Raises:
        DataError: as `prerank.data.prepare.prepare`, naming file, column, row and value; where a
            chunk has several bad rows, those of this chunk are counted.
    """
    items, vectors = read_items(path, config.logs.items)
    user_table = read_users(path, config.logs.users)
    found = sources(path, config)
    for source in found:
        for file in source.files:
            source.require_ids(file)
    counted = _count_users(found, user_table)
    users = Vocabulary(texts(counted[NAME]))
    n_rows = sum(sum(source.rows) for source in found)
    bounds = _bounds(counted["n"].to_numpy(), -(-n_rows // part_rows))
    strangers = 0
    if user_table is not None:
        shown = counted.filter(pl.col("shown"))[NAME]
        strangers = int((~shown.is_in(user_table["user"].implode())).sum())
    log(f"prepare: {n_rows} rows of {len(users)} users in {len(bounds) - 1} parts")

    spill = _Spill(work / "spill", bounds, part_rows, config.logs)
    spill.write(found, counted[NAME], items["item"])
    logs = Logs(
        name=path.name or "logs",
        time_unit="ms",
        items=items,
        users=user_table,
        exposures=pl.DataFrame(),
        clicks_are_interactions=not found[2].files,
        vectors=vectors,
        stages=config.logs.stages,
    )
    vocabulary = Vocabulary(np.sort(texts(items["item"])))
    _check_requests(spill, found[0])
    features = features_of(user_table, "user", users)
    catalog = catalog_of(logs, vocabulary)
    cuts = _cuts(spill, config)
    head = replace(blank(logs.name, "ms", users, vocabulary), cuts=cuts)
    writer = PartsWriter(out, bounds)
    made = _write_parts(spill, writer, head, logs, config)
    if logs.clicks_are_interactions:
        require_clicks(made.n_clicks)
    unknown = known_or_note(made.n_by_period)
    sampled = _sampled(writer, made, logs, config, seed)
    parts = [("exposed", exposed_rows(head.exposures)), *sampled]
    pools = join_pools(parts)
    writer.write_pools(pools.columns())
    notes = spill.notes + made.repeats.notes()
    notes += notes_of(True, strangers, bool(found[2].files))
    notes += unknown + left_out_notes(made.n_late, made.n_after) + known_notes(made.n_known)
    notes.append(pools_note(logs.sampled_pools, config.pools))
    notes += idle_notes(made.n_idle, len(users))
    candidates = replace(head.candidates, stages=logs.stages)
    empty = pools.take(np.zeros(len(pools), bool))
    writer.finish(
        replace(
            head,
            user_features=features,
            catalog=catalog,
            candidates=candidates,
            pools=empty,
            notes=tuple(notes),
        )
    )
    spill.remove()


def _count_users(found: list[Source], user_table: pl.DataFrame | None) -> pl.DataFrame:
    """Return the distinct users, sorted: ``id``, ``n`` rows of events, ``shown`` in exposures."""
    parts = []
    for source in found:
        name, is_shown = pl.col("user").cast(pl.String), pl.lit(source is found[0])
        columns = [c for file in source.files if (c := source.column(file, "user")) is not None]
        if columns:
            whole = pl.concat([c.select(name.alias(NAME)) for c in columns]).drop_nulls()
            count = whole.group_by(NAME).agg(pl.len().cast(pl.Int64).alias("n"))
            parts.append(source.collect(count.with_columns(is_shown.alias("shown"))))
    counted = parts[0]
    if len(parts) > 1:
        counted = pl.concat(parts).group_by(NAME).agg(pl.col("n").sum(), pl.col("shown").any())
    if user_table is not None:
        known = user_table.select(pl.col("user").alias(NAME), n=pl.lit(0, pl.Int64), shown=False)
        fresh = known.join(counted, on=NAME, how="anti")
        counted = pl.concat([counted, fresh])
    return counted.sort(NAME)


def _bounds(rows: NDArray[np.int64], n_parts: int) -> TimeArray:
    """Return (P + 1,) bounds of parts of about equal rows; no user is torn apart."""
    if not len(rows):
        return np.zeros(2, np.int64)
    ends = np.cumsum(rows)
    wanted = ends[-1] * np.arange(1, n_parts) // n_parts
    inner = np.searchsorted(ends, wanted, side="left") + 1
    return np.unique(np.concatenate([[0], inner, [len(rows)]])).astype(np.int64)


class _Spill:
    """Checked and indexed rows on disk, a file a chunk and part.

    Attributes:
        notes: on units of time.
    """

    def __init__(self, folder: Path, bounds: TimeArray, size: int, config: LogsConfig) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder, self.bounds, self.size, self.config = folder, bounds, size, config
        self.notes: list[str] = []
        self.has_requests = False

    def write(self, found: list[Source], users: pl.Series, items: pl.Series) -> None:
        """Read all tables and spill their rows."""
        index = pl.DataFrame({NAME: users, INDEX: np.arange(len(users), dtype=np.int32)})
        ranks = pl.DataFrame({NAME: items.sort(), INDEX: np.arange(len(items), dtype=np.int32)})
        whole = _requests_are_whole(found)
        todo = [(source, *chunk) for source in found for chunk in source.chunks(self.size)]
        units: dict[Path, str] = {}
        before: tuple[Path, int] | None = None
        names: dict[str, tuple[Path, list[str]]] = {}
        for number, (source, file, first, n) in enumerate(track(todo, "read")):
            spec, where = source.spec, Rows(file, first)
            if file not in units:
                units[file] = self._unit(source, file)
            raw = raw_rows(file, spec, (first, n))
            columns = event_columns(raw, where, self.config, spec, units[file])
            require_alike(*names.setdefault(spec.name, (file, list(columns))), file, columns)
            if "time" in columns:
                if spec.table.sorted and before is not None and before[0] == file:
                    falls = (pl.int_range(n, eager=True) == 0) & (columns["time"] < before[1])
                    complain_of_order(raw[spec.theirs("time")], falls, where)
                before = (file, int(columns["time"][-1]))
            if whole and "request" in columns:
                columns["request"] = raw[spec.theirs("request")].cast(pl.Int64)
            frame = _indexed(pl.DataFrame(columns), "item", ranks)
            require_items(raw, frame["item"].is_null(), where, spec)
            self._spill(spec.name, number, _indexed(frame, "user", index))
        if self.notes:
            self.notes = list(dict.fromkeys(self.notes))

    def _unit(self, source: Source, file: Path) -> str:
        """Return the unit of a file's times: as declared, or told by the smallest and largest."""
        column, declared = source.column(file, "time"), self.config.time_unit
        if column is None or "time" not in _columns(source.spec):
            return declared
        kind = column.collect_schema()["time"]
        # Text of both kinds, numbers and dates, is refused whatever the unit.
        if not (kind == pl.String or (kind.is_numeric() and declared == "auto")):
            return declared
        number = pl.col("time").cast(pl.Float64, strict=False)
        low, high, known, n = source.collect(
            column.select(
                number.min(),
                number.max().alias("high"),
                number.count().alias("known"),
                n=pl.len(),
            )
        ).row(0)
        if not known:
            return declared
        theirs = source.spec.theirs("time")
        ends = pl.Series(theirs, [low, high])
        if kind == pl.String and known < n:
            as_time(column.collect()["time"].alias(theirs), file, declared)  # names the row
        if declared != "auto":
            return declared
        unit = inferred_unit(ends)
        if unit is None and low >= 0 and known == n:
            as_time(ends, file, "auto")  # says that the unit is not clear
        if known == n:
            self.notes += unit_notes(file, unit)
        return unit or "auto"

    def _spill(self, name: str, number: int, frame: pl.DataFrame) -> None:
        """Write the rows of a chunk, one file a part; each keeps their order."""
        user = frame["user"].to_numpy()
        part = np.searchsorted(self.bounds, user, side="right") - 1
        order = np.argsort(part, kind="stable")
        frame = frame[order]
        ends = np.searchsorted(part[order], np.arange(len(self.bounds)))
        for p in np.flatnonzero(np.diff(ends)):
            rows = frame[int(ends[p]) : int(ends[p + 1])]
            rows.write_ipc(self.folder / f"{name}-{p:05d}-{number:05d}.arrow", compression="lz4")
        if "request" in frame.columns:
            self.has_requests = True
            pairs = frame.select("request", "user").unique(maintain_order=True)
            pairs.write_ipc(self.folder / f"requests-{number:05d}.arrow", compression="lz4")

    def files(self, name: str, part: int | None = None) -> list[Path]:
        """Return the files of a table, of one part or of all, in the order of the log."""
        which = "*" if part is None else f"{part:05d}"
        return sorted(self.folder.glob(f"{name}-{which}-*.arrow"))

    def read(self, name: str, part: int) -> dict[str, Any]:
        """Return a table's rows of one part by column, users from 0; ``request`` is a series."""
        files = self.files(name, part)
        if not files:
            whole, index = np.zeros(0, np.int64), np.zeros(0, np.int32)
            return {"user": index, "item": index, "time": whole}
        frame = pl.concat([pl.read_ipc(file) for file in files])
        columns: dict[str, Any]
        columns = {n: frame[n].to_numpy() for n in frame.columns if n not in ("click", "request")}
        columns["user"] = columns["user"] - np.int32(self.bounds[part])
        if "click" in frame.columns:
            columns["click"] = frame["click"].fill_null(-1).to_numpy()
        if "request" in frame.columns:
            columns["request"] = frame["request"]
        return columns

    def remove(self) -> None:
        """Delete the spilled rows."""
        shutil.rmtree(self.folder)


def _columns(spec: EventTable) -> tuple[str, ...]:
    return (*spec.required, *spec.optional)


def _requests_are_whole(found: list[Source]) -> bool:
    """Say whether all request ids of all tables are integers, so that none need be text."""
    kinds = []
    for source in found:
        if "request" in _columns(source.spec):
            columns = [source.column(file, "request") for file in source.files]
            kinds += [c.collect_schema()["request"] for c in columns if c is not None]
    return all(kind.is_integer() and kind not in WIDE for kind in kinds)


def _indexed(frame: pl.DataFrame, column: str, index: pl.DataFrame) -> pl.DataFrame:
    """Return the frame with the ids of a column replaced by their index, null if unknown."""
    joined = frame.join(index, left_on=column, right_on=NAME, how="left", maintain_order="left")
    return joined.drop(column).rename({INDEX: column})


def _check_requests(spill: _Spill, shown: Source) -> None:
    """Raise DataError if a request of the exposures has two users, wherever they stand."""
    n_first = len(list(shown.chunks(spill.size)))
    files = sorted(spill.folder.glob("requests-*.arrow"))
    own = [file for file in files if int(file.stem[-5:]) < n_first]
    if not own:  # candidates alone may name requests
        return
    pairs = pl.scan_ipc(own)
    shard = pl.col("request").hash(0) % REQUEST_SHARDS
    for number in range(REQUEST_SHARDS):
        users = pl.col("user")
        mixed = (
            pairs.filter(shard == number)
            .group_by("request")
            .agg(users.min().alias("low"), users.max().alias("high"))
            .filter(pl.col("low") != pl.col("high"))
            .select("request")
            .collect(engine="streaming")
        )
        if len(mixed):
            _name_request(shown, mixed)


def _name_request(shown: Source, mixed: pl.DataFrame) -> None:
    """Raise DataError at the first row of exposures that gives a request of ``mixed`` two users."""
    names = mixed.select(pl.col("request").cast(pl.String))
    parts, before = [], 0
    for file, n in zip(shown.files, shown.rows, strict=True):
        ours = {"request": shown.spec.theirs("request"), "user": shown.spec.theirs("user")}
        columns = [pl.col(theirs).cast(pl.String).alias(name) for name, theirs in ours.items()]
        rows = scan_file(file).select(columns).with_row_index("row", before)
        parts.append(rows.join(names.lazy(), on="request", how="semi").collect(engine="streaming"))
        before += n
    found = pl.concat(parts).sort("row")
    first = pl.col("user").first().over("request")
    odd = found.filter(pl.col("user") != first)
    file, row = Files(shown.files).place(int(odd["row"][0]))
    ids = found.filter(pl.col("row") <= odd["row"][0])
    one_user_a_request(ids.select("request", "user"), Rows(file, row + 1 - len(ids)))


class Moments:
    """Order statistics of times that lie in files, by counting: two passes a question."""

    def __init__(self, chunks: Callable[[], Iterator[TimeArray]]) -> None:
        self._chunks = chunks
        ends = [(len(c), c.min(), c.max()) for c in chunks() if len(c)]
        self._n = sum(n for n, _, _ in ends)
        self._low = min(int(low) for _, low, _ in ends) if ends else 0
        self._high = max(int(high) for _, _, high in ends) if ends else 0

    def __len__(self) -> int:
        return self._n

    def at(self, rank: int) -> int:
        """Return the moment of this rank."""
        low, high, before = self._low, self._high, 0
        while low < high:
            width = -(-(high - low + 1) // BINS)
            counts = np.zeros(BINS, np.int64)
            for chunk in self._chunks():
                inside = chunk[(chunk >= low) & (chunk <= high)]
                counts += np.bincount((inside - low) // width, minlength=BINS)
            ends = before + np.cumsum(counts)
            bin_ = int(np.searchsorted(ends, rank, side="right"))
            before = int(ends[bin_ - 1]) if bin_ else before
            low, high = low + bin_ * width, min(high, low + (bin_ + 1) * width - 1)
        return low

    def below(self, moment: int) -> int:
        """Return how many lie before ``moment``."""
        return sum(int((chunk < moment).sum()) for chunk in self._chunks())


def _cuts(spill: _Spill, config: PrepareConfig) -> Cuts:
    """Return the cuts of the exposures."""
    files = spill.files("exposures")

    def chunks(of_split: int | None) -> Iterator[TimeArray]:
        names = ["time"] if of_split is None else ["time", "split"]
        for file in files:
            frame = pl.read_ipc(file, columns=names)
            time = frame["time"].to_numpy()
            yield time if of_split is None else time[frame["split"].to_numpy() == of_split]

    if config.split.method == "temporal":
        return cuts_of(Moments(lambda: chunks(None)), config.split, NO_CUTS)
    train = Moments(lambda: chunks(TRAIN))
    held = [[(len(c), int(c.min())) for c in chunks(s) if len(c)] for s in (VALIDATION, TEST)]
    n_test = sum(n for n, _ in held[1])
    require_periods(len(train), n_test, given=True)
    first = [min((low for _, low in sizes), default=None) for sizes in held]
    share = config.split.anchor_fraction
    anchors = quantile(train, len(train), share)
    validation = first[0] if first[0] is not None else first[1]
    return Cuts(anchors=anchors, validation=validation, test=first[1])


@dataclass
class _Made:
    """What is counted while parts are written."""

    n_late: int = 0
    n_after: int = 0
    n_known: int = 0
    n_idle: int = 0
    n_clicks: int = 0
    n_by_period: NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))
    repeats: Repeats = field(default_factory=Repeats)
    positives: list[Columns] | None = None
    popularity: NDArray[np.int64] | None = None


def _write_parts(
    spill: _Spill, writer: PartsWriter, head: Dataset, logs: Logs, config: PrepareConfig
) -> _Made:
    """Assemble, check and write every part."""
    made, positives, n_requests = _Made(), [], 0
    popularity = np.zeros(len(head.items), np.int64)
    for p in track(range(len(writer.bounds) - 1), "write"):
        first, end = int(writer.bounds[p]), int(writer.bounds[p + 1])
        shown, offered = spill.read("exposures", p), spill.read("candidates", p)
        n_requests += _number_requests(shown, offered, n_requests)
        split = shown["split"] if "split" in shown else split_at(shown["time"], head.cuts)
        exposures = exposures_of(shown, split.astype(np.int8))
        interactions, n_late = interactions_of(
            exposures, spill.read("interactions", p), head.cuts, "ms", logs.clicks_are_interactions
        )
        ends = training_ends(exposures, end - first, head.cuts, "ms")
        candidates, n_after = candidates_of(offered, ends, logs.stages)
        part = replace(
            blank(logs.name, "ms", Vocabulary(head.users.ids[first:end]), head.items),
            exposures=exposures,
            candidates=candidates,
            interactions=interactions,
            pools=join_pools([("exposed", exposed_rows(exposures))]),
            cuts=head.cuts,
        )
        check_leaks(part)
        writer.write(p, part)
        made.n_late += n_late
        made.n_after += n_after
        made.n_clicks += n_training_clicks(exposures)
        made.n_by_period += known_by_period(exposures)
        made.repeats += Repeats.of(pl.DataFrame(exposures.columns()))
        active = sorted_unique(np.concatenate([exposures.user, interactions.user]))
        made.n_idle += (end - first) - len(active)
        clicked, n_known = positives_of(exposures, interactions)
        made.n_known += n_known
        positives.append({**clicked, "user": clicked["user"] + np.int32(first)})
        popularity += np.bincount(interactions.item, minlength=len(popularity))
    made.positives, made.popularity = positives, popularity
    return made


def _number_requests(shown: dict[str, Any], offered: dict[str, Any], start: int) -> int:
    """Number the requests of a part's exposures and candidates from ``start``; return how many.

    Named ones come first, in the order of their names. Rows without a request id: those of one
    user at one moment are a request.
    """
    tables = (shown, offered)
    named = [t["request"] for t in tables if "request" in t]
    ranks = np.zeros(0, np.int64)
    if named:
        ranks = pl.concat(named).rank("dense").cast(pl.Int64).to_numpy() - 1
    n_named = int(ranks.max(initial=-1)) + 1
    unnamed = [t for t in tables if "request" not in t]
    pairs = [np.stack([t["user"].astype(np.int64), t["time"]], axis=1) for t in unnamed]
    rows = np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64)
    order = np.lexsort((rows[:, 1], rows[:, 0]))
    fresh = np.ones(len(order), bool)
    fresh[1:] = (rows[order][1:] != rows[order][:-1]).any(axis=1)
    code = np.empty(len(order), np.int64)
    code[order] = np.cumsum(fresh) - 1
    codes = {True: start + ranks, False: start + n_named + code}
    at = {True: 0, False: 0}
    for table in tables:
        kind, n = "request" in table, len(table["user"])
        table["request"] = codes[kind][at[kind] : at[kind] + n]
        at[kind] += n
    return n_named + int(fresh.sum())


def _sampled(
    writer: PartsWriter, made: _Made, logs: Logs, config: PrepareConfig, seed: int
) -> list[tuple[str, Columns]]:
    """Return the sampled pools; what their users have met is read back from the parts."""
    assert made.positives is not None and made.popularity is not None
    names = made.positives[0]
    positives = {n: np.concatenate([part[n] for part in made.positives]) for n in names}
    picked = picked_requests(positives["split"], config.pools, seed)
    met = _met(writer, np.unique(positives["user"][np.concatenate([i for _, i in picked])]))
    found = []
    powers = (0.0, config.pools.popularity_power)
    for name, power in zip(logs.sampled_pools, powers, strict=True):
        weights = weights_of(made.popularity, power)
        found.append((name, sampled_rows(name, positives, met, weights, config.pools, seed)))
    return found


def _met(writer: PartsWriter, users: NDArray[np.int32]) -> TimeArray:
    """Return the sorted unique keys of all that ``users`` were shown or interacted with."""
    some = pl.DataFrame({"user": users})
    keys = []
    for name in ("exposures", "interactions"):
        for file in parquet_files(writer.path, name):
            rows = pl.read_parquet(file, columns=["user", "item"]).join(some, on="user", how="semi")
            keys.append(pair_keys(rows["user"].to_numpy(), rows["item"].to_numpy()))
    return sorted_unique(np.concatenate(keys))
