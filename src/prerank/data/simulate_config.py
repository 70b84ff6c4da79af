"""Settings of the simulated A/B test, `prerank simulate` (light imports)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prerank.config import Config


class TruthConfig(Config):
    """A known truth in place of the world: who would click what, from data."""

    file: str = Field(
        "",
        description="Parquet file with user, item (ids of the prepared data set) and click (0 or "
        "1); empty: the data set's own candidates with known truth. Pairs that are not listed are "
        "never recalled.",
    )
    users: Literal["all", "validation", "test"] = Field(
        "all",
        description="Who may live in a shop: everybody, or users with a pool of this period, so "
        "that settings are chosen in shops of `validation` and tested in shops of `test` (where "
        "the source parts its users so, as `anime` does).",
    )
    n_users: int = Field(
        1000, ge=0, description="Of these, a sample drawn for each replication; 0: all."
    )
    n_history_days: int = Field(
        20, ge=1, description="Days of organic discovery before the first request."
    )
    history_share: float = Field(
        0.4,
        gt=0,
        lt=1,
        description="Share of a user's clicks-to-be found organically in these days; the daily "
        "rate goes on.",
    )
    utility_gap: float = Field(
        4.0,
        ge=0,
        description="How far the production models see a clicked item above a not clicked one, "
        "before their errors (`prepare.world.prerank_error`, `rank_error`).",
    )
    new_item_share: float = Field(
        0.1, ge=0, le=1, description="Share of items held back and released after the first day."
    )


class SimulateConfig(Config):
    """A simulated A/B test: every arm retrains on its own logs each day and serves the next."""

    n_days: int = Field(7, ge=1, description="Days on which the arms serve.")
    n_replications: int = Field(
        10, ge=1, description="Worlds, each with luck of its own; all arms live in each of them."
    )
    arms: tuple[str, ...] = Field(
        (),
        description="Methods that serve: of the recipe, or any baseline by name; empty: all of the "
        "recipe's.",
    )
    baseline: str = Field("exposed-only", description="The arm that lifts are relative to.")
    references: bool = Field(
        True,
        description="Also serve with the production pre-ranker (`production`) and with the true "
        "click probability (`oracle`: how much any pre-ranker could gain); in the world also with "
        "what of it a model can learn (`oracle-learnable`) and with interest alone "
        "(`oracle-interest`).",
    )
    requests_per_day: int = Field(400, ge=1, description="Visits a day.")
    n_log_days: int = Field(
        3,
        ge=1,
        description="Days logged under the production policy before the arms start; day 0 is the "
        "last of them.",
    )
    window: int = Field(
        4, ge=1, description="A morning's training sees the logs of this many last days."
    )
    candidates_per_request: int = Field(
        40,
        ge=1,
        description="Unexposed candidates logged a request, a seeded sample of those recalled.",
    )
    validation_share: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of the requests of the window held out, for early stopping.",
    )
    anchors_every: int = Field(
        2,
        ge=1,
        description="Anchors are made anew, with fresh histories, when the start of the window "
        "has moved by this many days; the language model is not trained again.",
    )
    tail_share: float = Field(
        0.8,
        gt=0,
        lt=1,
        description="This share of the items, those with fewest positives when the arms start, "
        "is the long tail.",
    )
    category: str = Field(
        "category",
        description="Item feature whose values a user's distinct categories are counted by; "
        "where there is none, the first code of the semantic ID.",
    )
    checkpoint_days: int = Field(
        3, ge=1, description="An arm's state is kept after every so many days; a kill costs these."
    )
    interval: float = Field(
        0.95, gt=0, lt=1, description="Level of the intervals, Student's t over replications."
    )
    truth: TruthConfig = Field(
        default_factory=TruthConfig,
        description="For data with known truth; the funnel is `prepare.world`'s.",
    )
