"""Settings of ``prepare``: which source, which columns, which split, which pools."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from prerank.config import Config
from prerank.data.world_config import WorldConfig

Source = Literal[
    "world",
    "logs",
    "games",
    "anime",
    "kuairand",
    "recbole",
    "movielens",
    "mind",
    "recflow",
    "taobao-mm",
]


class SplitConfig(Config):
    """Where history ends, validation begins and test begins."""

    method: Literal["temporal", "given"] = Field(
        "temporal",
        description="temporal: by quantiles of exposure time (a log without time is split at "
        "random, and says so); given: by a `split` column of the exposures.",
    )
    validation_fraction: float = Field(
        0.1, gt=0, lt=1, description="Share of the exposures in validation."
    )
    test_fraction: float = Field(0.1, gt=0, lt=1, description="Share of the exposures in test.")
    anchor_fraction: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Share of the training exposures before the anchor cut: interactions before "
        "it feed the anchors, pseudo-labels are given to candidates after it.",
    )
    anchors_from: str = Field("", description="ISO moment of the anchor cut; empty: by fraction.")
    validation_from: str = Field(
        "", description="ISO moment where validation begins; empty: by fraction."
    )
    test_from: str = Field("", description="ISO moment where test begins; empty: by fraction.")

    @model_validator(mode="after")
    def _some_training_is_left(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction must be below 1")
        return self


class PoolsConfig(Config):
    """The sampled evaluation pools: one clicked item among items the user never met."""

    n_negatives: int = Field(99, ge=1, description="Assumed negatives a clicked item.")
    popularity_power: float = Field(
        1.0,
        ge=0,
        description="The popular pool draws items by (interactions + 1) to this power, with all "
        "that a history may hold; at 1 negatives are as popular as positives, so popularity alone "
        "earns nothing.",
    )
    max_requests: int = Field(6000, ge=1, description="Most requests of a sampled test pool.")
    max_validation_requests: int = Field(
        2000, ge=1, description="Most requests of a sampled validation pool."
    )


class TableConfig(Config):
    """Where a table lies and how its columns are called."""

    file: str = Field(
        "",
        description="File, folder or glob below `path`; empty: `<table>.parquet`, `<table>.csv` "
        "or the folder `<table>`.",
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description='Our column name -> your column name, e.g. {user = "uid", time = "ts"}.',
    )
    sorted: bool = Field(
        False, description="The file claims to be in time order; a time that falls is an error."
    )


class FeatureTableConfig(TableConfig):
    """A table of users or items with side information."""

    categorical: tuple[str, ...] = Field((), description="Columns read as categories.")
    numeric: tuple[str, ...] = Field((), description="Columns read as numbers.")
    multi_valued: tuple[str, ...] = Field(
        (), description="Columns of several categories a row: lists, or text cut at `separator`."
    )
    sequence: tuple[str, ...] = Field(
        (), description="Columns like `multi_valued` whose order counts, oldest first."
    )
    separator: str = Field("|", min_length=1, description="Cuts text into several values.")
    embedding: tuple[str, ...] = Field(
        (), description="Columns of numbers of one length a row (Parquet)."
    )
    max_categories: int = Field(
        10_000,
        ge=1,
        description="Keep the most frequent values of a category or list; the rest: missing.",
    )

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for kind in ("categorical", "numeric", "multi_valued", "sequence", "embedding"):
            names = getattr(self, kind)
            if len(set(names)) < len(names):
                raise ValueError(f"{kind} names a column twice: {', '.join(names)}")
        return self


class ItemTableConfig(FeatureTableConfig):
    """The items table."""

    text: tuple[str, ...] = Field(
        (), description="Columns joined by a space into the text that encoders read; empty: title."
    )


class LogsConfig(Config):
    """Own logs: Parquet or CSV tables, see docs/reference/log-schema.md."""

    time_unit: Literal["auto", "s", "ms", "us", "ns"] = Field(
        "auto",
        description="Unit of integer times. auto: seconds in [1e8, 1e11), milliseconds in "
        "[1e11, 1e14), microseconds in [1e14, 1e17), nanoseconds in [1e17, 1e20), all of a file "
        "alike; else declare it.",
    )
    log_end: str = Field("", description="ISO moment after which no event may lie; empty: none.")
    stages: tuple[str, ...] = Field(
        ("recalled", "prerank", "rank", "rerank", "exposed"),
        min_length=1,
        description="Names in the candidates' `stage` column, from shallow to deep; the first is "
        "that of candidates without a stage.",
    )
    items: ItemTableConfig = Field(default_factory=ItemTableConfig, description="Items.")
    users: FeatureTableConfig = Field(
        default_factory=FeatureTableConfig, description="Users (optional table)."
    )
    exposures: TableConfig = Field(default_factory=TableConfig, description="Exposures.")
    candidates: TableConfig = Field(
        default_factory=TableConfig, description="Recalled candidates (optional table)."
    )
    interactions: TableConfig = Field(
        default_factory=TableConfig,
        description="Positive interactions (optional table; default: the clicked exposures).",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.stages)) < len(self.stages) or "" in self.stages:
            raise ValueError("stages must be distinct names, from shallow to deep")
        return self


class GamesConfig(Config):
    """Amazon Video Games: positives and seven recall channels."""

    negatives_per_positive: int = Field(
        4, ge=1, description="Simulated exposed negatives a positive."
    )
    negative_power: float = Field(
        0.75, ge=0, description="They are drawn by (interactions + 1) to this power."
    )
    min_history: int = Field(
        1, ge=1, description="A positive is exposed in training from this history length on."
    )


class AnimeConfig(Config):
    """MyAnimeList: funnels with known truth on the unexposed side, no time."""

    funnel: Literal["click", "rating"] = Field(
        "click", description="click: 300 recalled titles a user; rating: the titles a user rated."
    )
    validation_fraction: float = Field(
        0.1, gt=0, lt=1, description="Share of the exposed rows held out for calibration."
    )


class KuaiRandConfig(Config):
    """KuaiRand-Pure standard log: real impressions, no text, no candidates."""

    label: Literal["is_click", "long_view"] = Field(
        "is_click", description="Which feedback counts as a click."
    )
    history: Literal["long_view", "watched"] = Field(
        "long_view", description="Which earlier videos count as interactions."
    )
    test_days: int = Field(2, ge=1, description="Last days in test.")
    validation_days: int = Field(1, ge=1, description="Days before them in validation.")
    min_author_items: int = Field(
        2, ge=1, description="Authors of fewer videos than this are a missing category."
    )


class RatingsConfig(Config):
    """Positives from a log of ratings."""

    threshold: float = Field(4.0, description="A rating from this on is a click.")
    negatives_per_positive: int = Field(
        4, ge=1, description="Simulated exposed negatives a positive, where a log has no ratings."
    )
    negative_power: float = Field(
        0.75, ge=0, description="They are drawn by (interactions + 1) to this power."
    )


class RecFlowConfig(Config):
    """RecFlow: every stage of a real funnel."""

    label: Literal["effective_view", "long_view", "like", "follow", "forward", "comment"] = Field(
        "effective_view", description="Which feedback counts as a click."
    )


class TaobaoMmConfig(Config):
    """Taobao-MM: how much of it to read."""

    max_users: int = Field(
        0, ge=0, description="Users read, drawn evenly from those of the samples; 0: all."
    )
    history_length: int = Field(
        200, ge=1, description="Most recent items kept of a user's history (published: 1000)."
    )
    history_needs_vector: bool = Field(
        True,
        description="Leave history items without a vector out; the published vectors cover nine "
        "tenths of the histories.",
    )
    only_seen_items: bool = Field(
        True, description="Leave out items that stand in no sample and no history kept."
    )


class PrepareConfig(Config):
    """Settings of the verb ``prepare``."""

    source: Source = Field("world", description="Where the logs come from.")
    path: str = Field("", description="Folder of the files; the world needs none.")
    split: SplitConfig = Field(default_factory=SplitConfig, description="The split.")
    pools: PoolsConfig = Field(default_factory=PoolsConfig, description="Sampled pools.")
    world: WorldConfig = Field(default_factory=WorldConfig, description="The simulated cascade.")
    logs: LogsConfig = Field(default_factory=LogsConfig, description="Own logs.")
    games: GamesConfig = Field(default_factory=GamesConfig, description="Amazon Video Games.")
    anime: AnimeConfig = Field(default_factory=AnimeConfig, description="MyAnimeList.")
    kuairand: KuaiRandConfig = Field(default_factory=KuaiRandConfig, description="KuaiRand-Pure.")
    ratings: RatingsConfig = Field(
        default_factory=RatingsConfig, description="Rating logs: MovieLens and RecBole files."
    )
    recflow: RecFlowConfig = Field(default_factory=RecFlowConfig, description="RecFlow.")
    taobao_mm: TaobaoMmConfig = Field(default_factory=TaobaoMmConfig, description="Taobao-MM.")


def own_section(source: str) -> str:
    """Return the name of the section that ``source`` alone reads; not every source has one."""
    shared = {"recbole": "ratings", "movielens": "ratings"}
    return shared.get(source, source.replace("-", "_"))
