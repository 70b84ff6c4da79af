"""The typed artifacts that stages hand to each other.

Frozen dataclasses over NumPy arrays, checked once where they are made. Users and items are dense
indices into the Dataset's vocabularies; raw ids live in the vocabularies only.

Letters in shapes: U users, I items, L levels, D dims, A anchors (of all users), N rows.
Time is int64: UTC milliseconds, or a position in the user's order, or 0 (see ``TimeUnit``).
A click is int8: 1 clicked, 0 seen and not clicked, -1 unknown. They are never mixed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from prerank.errors import ArtifactError, DataError
from prerank.vocabulary import Vocabulary

IntArray = NDArray[np.int32]
TimeArray = NDArray[np.int64]
ByteArray = NDArray[np.int8]
FloatArray = NDArray[np.float32]
TextArray = NDArray[np.object_]

TimeUnit = Literal["ms", "order", "none"]
"""``ms``: UTC milliseconds; ``order``: position in the user's sequence; ``none``: no time at all,
histories are sets and the item of a row is left out of its own history."""

SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = 0, 1, 2
UNKNOWN_CLICK = -1
UNLABELED = "unlabeled"
"""Source of pseudo-labels that all abstain on purpose: pairs for objectives without labels."""
GIVEN = (
    "with split.method = given, training must end before validation begins and validation before "
    "test"
)
UNIT_TOLERANCE = 1e-3
CHECKED_ROWS = 1 << 18
GATHERED_ROWS = 1 << 16
"""Anchors whose vectors are gathered at once, or one user's; 17 MB with 64 dimensions."""


def require(
    ok: bool | np.bool_, what: str, *, where: str = "", must: str = "", got: object = ""
) -> None:
    """Raise DataError unless ``ok``."""
    if not ok:
        raise DataError(what, where=where, must=must, got=got)


@dataclass(frozen=True, eq=False)
class Table:
    """A table by column: every array field of a subclass is one column of equal length."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        lengths = {column: len(values) for column, values in self.columns().items()}
        require(
            len(set(lengths.values())) <= 1,
            f"columns of {name} differ in length",
            where=name,
            must="one length",
            got=lengths,
        )

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the columns by name, in the order of their declaration."""
        found = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {name: value for name, value in found if isinstance(value, np.ndarray)}

    def take(self, rows: NDArray[Any]) -> Self:
        """Return the table restricted to ``rows`` (mask or indices)."""
        return replace(self, **{name: values[rows] for name, values in self.columns().items()})

    def __len__(self) -> int:
        return len(next(iter(self.columns().values())))


def places_of(offsets: TimeArray, rows: TimeArray | IntArray) -> tuple[TimeArray, TimeArray]:
    """Return where the lists of some rows lie, of all lists end to end.

    Args:
        offsets: (R + 1,) int64; the list of row r is ``offsets[r]:offsets[r + 1]``.
        rows: (N,) rows in any order; -1 is an empty list.

    Returns:
        (V,) int64 places, one list after the other, and the (N + 1,) int64 offsets of theirs.
    """
    length = np.where(rows >= 0, np.diff(offsets)[rows], 0)
    found = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
    shift = np.repeat(offsets[:-1][rows] - found[:-1], length)
    return np.arange(found[-1]) + shift, found


def chunk_bounds(offsets: TimeArray, most: int) -> list[int]:
    """Cut lists that lie end to end into chunks of whole lists.

    Args:
        offsets: (R + 1,) int64; the list of row r is ``offsets[r]:offsets[r + 1]``.
        most: entries of a chunk; only a longer list has more, and is a chunk of its own.

    Returns:
        The first row of each chunk, and R.
    """
    cuts = [0]
    while cuts[-1] < len(offsets) - 1:
        last = int(np.searchsorted(offsets, offsets[cuts[-1]] + most, side="right")) - 1
        cuts.append(min(max(last, cuts[-1] + 1), len(offsets) - 1))
    return cuts


def rows_left(kept: NDArray[np.bool_]) -> IntArray:
    """Return (R,) int32: the row that each kept row has where the others are left out."""
    return np.cumsum(kept, dtype=np.int32) - np.int32(1)


@dataclass(frozen=True, eq=False)
class CodeLists:
    """A list of codes a row, such as a film's genres or a user's last searches.

    Attributes:
        offsets: (R + 1,) int64; the list of row r is ``codes[offsets[r]:offsets[r + 1]]``; an
            empty one is missing.
        codes: (V,) int32 of all rows end to end.
        ordered: the order means something: oldest first.
    """

    offsets: TimeArray
    codes: IntArray
    ordered: bool = False

    def take(self, rows: TimeArray) -> CodeLists:
        """Return the lists of ``rows`` (N,), in that order."""
        place, offsets = places_of(self.offsets, rows)
        return CodeLists(offsets, self.codes[place], self.ordered)

    def __post_init__(self) -> None:
        require(
            len(self.offsets) > 0 and self.offsets[0] == 0,
            "offsets must start at 0",
            where="CodeLists.offsets",
            must="0",
        )
        require(
            (np.diff(self.offsets) >= 0).all(),
            "offsets must not fall",
            where="CodeLists.offsets",
            must="each at least the one before",
        )
        require(
            int(self.offsets[-1]) == len(self.codes),
            "offsets must end at the last code",
            where="CodeLists.offsets",
            must="the number of codes",
            got=len(self.codes),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True, eq=False)
class Features:
    """Side information of users or items, by column.

    Attributes:
        n_rows: number of users or items described.
        categorical: name -> (n_rows,) int32 code, -1 where missing.
        categories: name -> the raw value of each code, in order; of ``lists`` too.
        numeric: name -> (n_rows,) float32, NaN where missing.
        lists: name -> multi-valued or sequence feature of n_rows lists.
        vectors: name -> (n_rows, D) float32 given embedding; a row of NaN is missing.
    """

    n_rows: int
    categorical: Mapping[str, IntArray] = field(default_factory=dict)
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    numeric: Mapping[str, FloatArray] = field(default_factory=dict)
    lists: Mapping[str, CodeLists] = field(default_factory=dict)
    vectors: Mapping[str, FloatArray] = field(default_factory=dict)

    def take(self, rows: TimeArray) -> Features:
        """Return the features of ``rows`` (N,), in that order."""
        return Features(
            n_rows=len(rows),
            categorical={name: codes[rows] for name, codes in self.categorical.items()},
            categories=self.categories,
            numeric={name: values[rows] for name, values in self.numeric.items()},
            lists={name: lists.take(rows) for name, lists in self.lists.items()},
            vectors={name: vectors[rows] for name, vectors in self.vectors.items()},
        )

    def __post_init__(self) -> None:
        for name, codes in self.categorical.items():
            self._require_length(name, len(codes))
            top = self._n_categories(name)
            inside = not len(codes) or (codes.min() >= -1 and codes.max() < top)
            require(inside, "code out of range", where=f"feature {name}", must=f"-1..{top - 1}")
        for name, values in self.numeric.items():
            self._require_length(name, len(values))
            require(
                not np.isinf(values).any(),
                "infinite value",
                where=f"feature {name}",
                must="finite or NaN",
            )
        for name, lists in self.lists.items():
            self._require_length(name, len(lists))
            top, codes = self._n_categories(name), lists.codes
            inside = not len(codes) or (codes.min() >= 0 and codes.max() < top)
            require(inside, "code out of range", where=f"feature {name}", must=f"0..{top - 1}")
        for name, vectors in self.vectors.items():
            require(
                vectors.ndim == 2,
                "vectors must be (rows, D)",
                where=f"feature {name}",
                must="2-D",
                got=vectors.shape,
            )
            self._require_length(name, len(vectors))
            known = ~np.isnan(vectors).all(axis=1)
            finite = np.isfinite(vectors[known]).all()
            require(
                finite, "a vector holds NaN or infinity", where=f"feature {name}", must="finite"
            )

    def _require_length(self, name: str, length: int) -> None:
        ok = length == self.n_rows
        require(ok, "wrong length", where=f"feature {name}", must=f"{self.n_rows} rows", got=length)

    def _n_categories(self, name: str) -> int:
        known = name in self.categories
        require(known, "no names of categories", where=f"feature {name}", must="one name a code")
        return len(self.categories[name])


@dataclass(frozen=True, eq=False)
class Catalog:
    """What is known of the items' content.

    Attributes:
        title: (I,) short name to show to people.
        text: (I,) all text an encoder may read (title, genres, brand ...).
        features: side information for the pre-ranker.
        vectors: (I, D) float32 given by the user, or None; a row of NaN means missing.
        image: (I,) path or URI of an item's image, empty where it has none; None: no item has.
    """

    title: TextArray
    text: TextArray
    features: Features
    vectors: FloatArray | None = None
    image: TextArray | None = None

    def __post_init__(self) -> None:
        require(
            len(self.title) == len(self.text) == self.features.n_rows,
            "catalog lengths differ",
            where="Catalog",
            must="one title, text and row of features an item",
        )
        if self.image is not None:
            require(
                len(self.image) == len(self.title),
                "one image entry per item is needed",
                where="Catalog.image",
                must="as many as titles",
                got=len(self.image),
            )
        if self.vectors is not None:
            require(
                len(self.vectors) == len(self.title),
                "one given vector per item is needed",
                where="Catalog.vectors",
                must="as many as titles",
                got=len(self.vectors),
            )

    def __len__(self) -> int:
        return len(self.title)


@dataclass(frozen=True, eq=False)
class Exposures(Table):
    """Items shown to users (D_e): what a production log has.

    Attributes:
        request: (N,) int64 id of the request.
        user, item: (N,) int32.
        time: (N,) int64.
        click: (N,) int8 in {1, 0, -1 = unknown}.
        position: (N,) int32 slot shown in, from 0; -1 unknown.
        propensity: (N,) float32 probability of exposure in (0, 1]; NaN unknown.
        split: (N,) int8 TRAIN, VALIDATION or TEST.
    """

    request: TimeArray
    user: IntArray
    item: IntArray
    time: TimeArray
    click: ByteArray
    position: IntArray
    propensity: FloatArray
    split: ByteArray

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            np.isin(self.click, (-1, 0, 1)).all(),
            "click out of range",
            where="Exposures.click",
            must="1, 0 or -1",
        )
        require(
            np.isin(self.split, (0, 1, 2)).all(),
            "split out of range",
            where="Exposures.split",
            must="0, 1 or 2",
        )
        known = self.propensity[~np.isnan(self.propensity)]
        require(
            ((known > 0) & (known <= 1)).all(),
            "propensity out of range",
            where="Exposures.propensity",
            must="in (0, 1] or NaN",
        )


@dataclass(frozen=True, eq=False)
class Candidates(Table):
    """Recalled items of training requests, exposed or not; the unexposed ones are D_u.

    Attributes:
        request, user, item, time: as in Exposures.
        stage: (N,) int8 code into ``stages``: the deepest stage of the cascade reached.
        score: (N,) float32 score of the production system, NaN if not logged.
        truth: (N,) float32 in [0, 1], the true click (or its probability) where an experiment
            knows it, NaN otherwise. Read by the audit and the true-label ceiling only.
        stages: names of the stage codes.
    """

    request: TimeArray
    user: IntArray
    item: IntArray
    time: TimeArray
    stage: ByteArray
    score: FloatArray
    truth: FloatArray
    stages: tuple[str, ...] = ("recalled",)

    def __post_init__(self) -> None:
        super().__post_init__()
        top = len(self.stages)
        inside = not len(self.stage) or (self.stage.min() >= 0 and self.stage.max() < top)
        require(
            inside, "candidate stage out of range", where="Candidates.stage", must=f"0..{top - 1}"
        )
        known = self.truth[~np.isnan(self.truth)]
        require(
            ((known >= 0) & (known <= 1)).all(),
            "truth out of range",
            where="Candidates.truth",
            must="in [0, 1] or NaN",
        )


@dataclass(frozen=True, eq=False)
class Interactions(Table):
    """Positive interactions, sorted by user then time: the source of all histories.

    Attributes:
        user, item: (N,) int32.
        time: (N,) int64; not falling within a user.
    """

    user: IntArray
    item: IntArray
    time: TimeArray

    def __post_init__(self) -> None:
        super().__post_init__()
        step = np.diff(self.user)
        require(
            (step >= 0).all(),
            "interactions are not sorted by user",
            where="Interactions.user",
            must="users that do not fall",
        )
        require(
            (np.diff(self.time)[step == 0] >= 0).all(),
            "interactions are not sorted by time",
            where="Interactions.time",
            must="times that do not fall within a user",
        )

    def offsets(self, n_users: int) -> TimeArray:
        """Return (U+1,) int64: interactions of user u are rows offsets[u]:offsets[u+1]."""
        return np.searchsorted(self.user, np.arange(n_users + 1)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Pools(Table):
    """The rows to evaluate on, with the truth. Training never reads them.

    Attributes:
        pool: (N,) int16 code into ``pools`` (exposed, unexposed, uniform-99, ...).
        split: (N,) int8 VALIDATION or TEST.
        request: (N,) int64; HR@k and NDCG@k rank the rows of one (pool, request) together.
        user, item, time: as in Exposures.
        click: (N,) int8 in {0, 1}: the truth.
        pools: names of the pool codes.
    """

    pool: NDArray[np.int16]
    split: ByteArray
    request: TimeArray
    user: IntArray
    item: IntArray
    time: TimeArray
    click: ByteArray
    pools: tuple[str, ...] = ("exposed",)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            np.isin(self.split, (VALIDATION, TEST)).all(),
            "pool rows must not be training",
            where="Pools.split",
            must="1 (validation) or 2 (test)",
        )
        require(
            np.isin(self.click, (0, 1)).all(),
            "pool truth must be known",
            where="Pools.click",
            must="0 or 1",
        )
        top = len(self.pools)
        inside = not len(self.pool) or (self.pool.min() >= 0 and self.pool.max() < top)
        require(inside, "pool code out of range", where="Pools.pool", must=f"0..{top - 1}")


@dataclass(frozen=True)
class Cuts:
    """The moments that separate what may be known when; None where the data has no time.

    Attributes:
        anchors: anchors and all that is fitted for them see interactions before this only, and
            pseudo-labels are given to candidates from this moment on.
        validation: the first moment of validation.
        test: the first moment of test.
    """

    anchors: int | None = None
    validation: int | None = None
    test: int | None = None


@dataclass(frozen=True, eq=False)
class Dataset:
    """Everything the other stages read: logs, catalog, histories, pools and the split.

    ``notes`` states what a reader of results must know: sampled negatives, no time order,
    a closed world, and so on.
    """

    name: str
    time_unit: TimeUnit
    users: Vocabulary
    items: Vocabulary
    user_features: Features
    catalog: Catalog
    exposures: Exposures
    candidates: Candidates
    interactions: Interactions
    pools: Pools
    cuts: Cuts = Cuts()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(
            len(self.catalog) == len(self.items),
            "catalog and item vocabulary differ",
            where="Dataset.catalog",
            must="one row an item",
            got=f"{len(self.catalog)} rows, {len(self.items)} items",
        )
        require(
            self.user_features.n_rows == len(self.users),
            "user features differ in length",
            where="Dataset.user_features",
            must="one row a user",
            got=f"{self.user_features.n_rows} rows, {len(self.users)} users",
        )
        tables: tuple[tuple[str, Exposures | Candidates | Interactions | Pools], ...] = (
            ("exposures", self.exposures),
            ("candidates", self.candidates),
            ("interactions", self.interactions),
            ("pools", self.pools),
        )
        for name, table in tables:
            for column, size in (("user", len(self.users)), ("item", len(self.items))):
                index = getattr(table, column)
                inside = not len(index) or (index.min() >= 0 and index.max() < size)
                require(inside, f"{column} index out of range", where=name, must=f"0..{size - 1}")
        self._check_time()

    def _check_time(self) -> None:
        """No training fact may lie at or after the moment it would leak from."""
        if self.time_unit != "ms":
            return
        shown = self.exposures
        if self.cuts.validation is not None:
            late = shown.time >= self.cuts.validation
            _none_late(late & (shown.split == TRAIN), "training exposures", "validation")
            _none_late(self.candidates.time >= self.cuts.validation, "candidates", "validation")
        if self.cuts.test is not None:
            late = shown.time >= self.cuts.test
            _none_late(late & (shown.split != TEST), "validation exposures", "test")
            _none_late(self.interactions.time >= self.cuts.test, "interactions", "test")


def _none_late(late: NDArray[np.bool_], rows: str, period: str) -> None:
    if late.any():
        raise DataError(
            f"{rows} reach into {period}",
            where="the split",
            must=f"before the {period} cut",
            got=f"{int(late.sum())} rows",
            hint=GIVEN,
        )


@dataclass(frozen=True, eq=False)
class ItemEmbeddings:
    """The frozen semantic space: one unit vector per item.

    Attributes:
        vectors: (I, D) float32, unit rows; an item without any content has a row of zeros. May
            be a file mapped into memory.
        quality: the quality report, plain JSON values.
    """

    vectors: FloatArray
    quality: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(
            self.vectors.ndim == 2,
            "item embeddings must be (I, D)",
            where="ItemEmbeddings.vectors",
            must="two dimensions",
            got=self.vectors.shape,
        )
        require(
            self.vectors.dtype == np.float32,
            "item embeddings must be float32",
            where="ItemEmbeddings.vectors",
            must="float32",
            got=self.vectors.dtype,
        )
        n_odd = 0
        for start in range(0, len(self.vectors), CHECKED_ROWS):
            rows = self.vectors[start : start + CHECKED_ROWS]
            require(
                np.isfinite(rows).all(),
                "item embeddings hold NaN or infinity",
                where="ItemEmbeddings.vectors",
                must="finite numbers",
            )
            norm = np.linalg.norm(rows, axis=1)
            n_odd += int(((np.abs(norm - 1) >= UNIT_TOLERANCE) & (norm != 0)).sum())
        require(
            n_odd == 0,
            "item embeddings are not unit rows",
            where="ItemEmbeddings.vectors",
            must="rows of length 1, or of zeros",
            got=f"{n_odd} rows",
        )


@dataclass(frozen=True, eq=False)
class SemanticIds:
    """Hierarchical codes of the items, from content alone.

    Attributes:
        codes: (I, L) int32, codes[i, l] < codebook_sizes[l]; items may share a semantic ID.
        codebook_sizes: (L,) int32.
        codebooks: (sum of codebook_sizes, D) float32 in the space of the item embeddings: the
            centroids of level 0, then level 1, ... Their sum stands for a semantic ID.
        quality: the quality report, plain JSON values.
        network: float32 weights where codes are made and decoded by a network (RQ-VAE); empty
            where the codebooks alone do it.
        items: whose codes these are, row by row; lets a later catalogue be matched. None: unknown.
    """

    codes: IntArray
    codebook_sizes: IntArray
    codebooks: FloatArray
    quality: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, FloatArray] = field(default_factory=dict)
    items: Vocabulary | None = None

    def __post_init__(self) -> None:
        require(
            self.codes.ndim == 2,
            "semantic IDs must be (I, L)",
            where="SemanticIds.codes",
            must="two dimensions",
            got=self.codes.shape,
        )
        require(
            self.codes.shape[1] == len(self.codebook_sizes),
            "one codebook size a level",
            where="SemanticIds.codebook_sizes",
            must="as many sizes as columns of codes",
            got=len(self.codebook_sizes),
        )
        inside = (self.codes >= 0) & (self.codes < self.codebook_sizes)
        require(
            inside.all(),
            "code out of range",
            where="SemanticIds.codes",
            must="below the level's codebook size",
        )
        require(
            len(self.codebooks) == self.codebook_sizes.sum(),
            "codebook rows differ",
            where="SemanticIds.codebooks",
            must="the sum of codebook_sizes",
            got=len(self.codebooks),
        )
        named = self.items is None or len(self.items) == len(self.codes)
        require(
            named,
            "semantic IDs and their item ids differ in length",
            where="SemanticIds.items",
            must="one id a row of codes",
        )

    @property
    def n_levels(self) -> int:
        """Number of levels, L."""
        return len(self.codebook_sizes)

    def level(self, level: int) -> FloatArray:
        """Return the (K, D) codebook of one level."""
        start = int(self.codebook_sizes[:level].sum())
        return self.codebooks[start : start + int(self.codebook_sizes[level])]


@dataclass(frozen=True, eq=False)
class InterestAnchors:
    """Each user's interest anchors: points of content space with their probabilities.

    Many anchors lie at one point, for all users choose from the same semantic IDs and items, so a
    point is kept once and an anchor names its row.

    Attributes:
        offsets: (U+1,) int64; anchors of user u are rows offsets[u]:offsets[u+1], best first.
        codes: (A, L) int32 semantic IDs.
        point: (A,) int32 row of ``points`` where the anchor lies.
        points: (P, D) float32 unit rows in the frozen semantic space, shared by all users; a row
            that no anchor names may be zeros. May be a file mapped into memory.
        logprob: (A,) float32 <= 0, over each level's whole codebook.
        logprob_legal: (A,) float32 <= 0, over the legal children only.
        source: llm, llm-debiased, history, random, popular, shuffled, or several joined by ``+``.
    """

    offsets: TimeArray
    codes: IntArray
    point: IntArray
    points: FloatArray
    logprob: FloatArray
    logprob_legal: FloatArray
    source: str

    def __post_init__(self) -> None:
        n, n_points = len(self.point), len(self.points)
        flat = self.codes.ndim == self.points.ndim == 2
        require(
            flat,
            "codes and points of anchors must be (A, L) and (P, D)",
            where="InterestAnchors",
            must="2-D",
            got=f"{self.codes.shape} and {self.points.shape}",
        )
        require(
            len(self.offsets) > 0 and self.offsets[0] == 0,
            "offsets must start at 0",
            where="InterestAnchors.offsets",
            must="0",
        )
        require(
            (np.diff(self.offsets) >= 0).all(),
            "offsets must not fall",
            where="InterestAnchors.offsets",
            must="each at least the one before",
        )
        require(
            int(self.offsets[-1]) == n,
            "offsets must end at the number of anchors",
            where="InterestAnchors.offsets",
            must="the length of point",
            got=n,
        )
        inside = not n or (self.point.min() >= 0 and self.point.max() < n_points)
        require(
            inside,
            "point out of range",
            where="InterestAnchors.point",
            must=f"0..{n_points - 1}",
        )
        same = len(self.codes) == len(self.logprob) == len(self.logprob_legal) == n
        require(
            same,
            "anchor arrays differ in length",
            where="InterestAnchors",
            must="one row an anchor in each",
        )
        require(
            (self.logprob <= 0).all(),
            "logprob above 0",
            where="InterestAnchors.logprob",
            must="at most 0, no NaN",
        )
        require(
            (self.logprob_legal <= 0).all(),
            "logprob_legal above 0",
            where="InterestAnchors.logprob_legal",
            must="at most 0, no NaN",
        )

    @property
    def n_users(self) -> int:
        """Number of users, U."""
        return len(self.offsets) - 1

    def users(self) -> IntArray:
        """Return (A,) int32: the user of each anchor."""
        return np.repeat(np.arange(self.n_users, dtype=np.int32), np.diff(self.offsets))

    def vectors_of(self, rows: NDArray[np.integer] | slice) -> FloatArray:
        """Return (N, D) float32: where the anchors ``rows`` lie. Ask for a bounded number."""
        return self.points[self.point[rows]]

    def by_users(self) -> Iterator[tuple[slice, FloatArray, TimeArray]]:
        """Yield users after users with the vectors of their anchors, `GATHERED_ROWS` at a time.

        Yields:
            Which users these are, n of them; the (K, D) float32 vectors of all their anchors; and
            their (n + 1,) int64 offsets in these vectors.
        """
        for first, end in pairwise(chunk_bounds(self.offsets, GATHERED_ROWS)):
            offsets = self.offsets[first : end + 1]
            vectors = self.vectors_of(slice(offsets[0], offsets[-1]))
            yield slice(first, end), vectors, offsets - offsets[0]

    def take(self, rows: TimeArray | NDArray[np.bool_], offsets: TimeArray) -> InterestAnchors:
        """Return the anchors ``rows`` (mask or numbers) as those of users with ``offsets``."""
        return replace(
            self,
            offsets=offsets,
            codes=self.codes[rows],
            point=self.point[rows],
            logprob=self.logprob[rows],
            logprob_legal=self.logprob_legal[rows],
        )

    def only(self, keep: NDArray[np.bool_]) -> InterestAnchors:
        """Return the anchors where ``keep`` (A,) holds; users stay as they are."""
        before = np.concatenate([[0], np.cumsum(keep)]).astype(np.int64)
        return self.take(keep, before[self.offsets])

    def first(self, n: int) -> InterestAnchors:
        """Return the ``n`` best anchors of each user; all of those who have fewer."""
        place = np.arange(len(self.point)) - np.repeat(self.offsets[:-1], np.diff(self.offsets))
        return self.only(place < n)

    def compact(self) -> InterestAnchors:
        """Return the same anchors with a table of those points only that one of them names."""
        named = np.zeros(len(self.points), bool)
        named[self.point] = True
        if named.all():
            return self
        return replace(self, point=rows_left(named)[self.point], points=self.points[named])


@dataclass(frozen=True, eq=False)
class PseudoLabels(Table):
    """Soft labels of unexposed pairs (D_u).

    Attributes:
        user, item: (N,) int32, unique pairs, none of them exposed in training.
        time: (N,) int64 moment of the candidate; its history lies strictly before.
        label: (N,) float32 in [0, 1].
        confidence: (N,) float32 >= 0; 0 = abstain. Rescaled to mean 1 over the non-abstaining.
        relevance: (N,) float32, the raw match r(u, h); NaN where the source has none.
        anchor: (N,) int64 row of the matched anchor in InterestAnchors, -1 if none.
        dispersion, history, llm: (N,) float32 the three confidence factors, NaN where absent.
        source: which label source made them.
        fit: what was fitted (map, prior, skill ...), plain JSON values.
    """

    user: IntArray
    item: IntArray
    time: TimeArray
    label: FloatArray
    confidence: FloatArray
    relevance: FloatArray
    anchor: TimeArray
    dispersion: FloatArray
    history: FloatArray
    llm: FloatArray
    source: str = ""
    fit: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = self.user.dtype.kind == self.item.dtype.kind == "i"
        require(whole, "pairs are not indices", where="PseudoLabels.user, item", must="integers")
        known = not len(self) or min(self.user.min(), self.item.min()) >= 0
        require(known, "an index is below 0", where="PseudoLabels.user, item", must="from 0 on")
        require(
            ((self.label >= 0) & (self.label <= 1)).all(),
            "label out of range",
            where="PseudoLabels.label",
            must="[0, 1]",
        )
        require(
            np.isfinite(self.confidence).all(),
            "confidence is not finite",
            where="PseudoLabels.confidence",
            must="finite numbers",
        )
        require(
            (self.confidence >= 0).all(),
            "confidence below 0",
            where="PseudoLabels.confidence",
            must="at least 0; 0 = abstain",
        )
        pair = np.sort(self.user.astype(np.int64) << 32 | self.item)
        require(
            (pair[1:] != pair[:-1]).all(),
            "pseudo-labels hold a pair twice",
            where="PseudoLabels.user, item",
            must="each user and item together once",
        )


LEAST_USERS = 10
"""Users that an interval, a p-value or a verdict needs.

Where nothing differs, the bootstrap of 2 users and one seed says p < .05 in 50 % of 2,000 worlds,
of 5 users in 17 %, of 8 in 11 %, of 10 in 9 % and of 30 or 60 in 7 %: so few are hardly a sample to
draw from again.
"""


@dataclass(frozen=True)
class Record:
    """One line of a report; the stable interface of ``report.json``.

    ``value`` is None when the metric is undefined there; ``reason`` then says why.
    ``n`` counts users (or requests) behind the value, users where they are fewer than
    `LEAST_USERS`; ``seeds`` the training seeds.
    """

    method: str
    pool: str
    segment: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    seeds: int
    reason: str = ""

    def __post_init__(self) -> None:
        if self.value is None and not self.reason:
            raise ArtifactError(
                "a null value needs a reason",
                where=f"{self.method}/{self.metric}",
                must="a text that says why",
            )

    @property
    def interval(self) -> tuple[float, float] | None:
        """``low`` and ``high``; None without them, or from fewer than `LEAST_USERS` users."""
        if self.low is None or self.high is None or self.n < LEAST_USERS:
            return None
        return self.low, self.high


@dataclass(frozen=True)
class Report:
    """metric x pool x segment for every method, and paired differences between methods.

    Attributes:
        records: one line a method, pool, segment and metric.
        differences: the same lines for ``method`` minus ``baseline`` (method reads
            ``"gpl - exposed-only"``), paired by user and seed.
        extra: everything the pages show besides: label histograms, reliability, codebook use,
            sample anchors, timings, notes; plain JSON values.
    """

    records: tuple[Record, ...]
    differences: tuple[Record, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
