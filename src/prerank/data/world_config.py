"""Settings of the simulated world (light imports)."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from prerank.config import Config


class WorldConfig(Config):
    """A simulated shop, its users and its production cascade; see docs/concepts/world.md."""

    n_users: int = Field(2000, ge=1, description="Number of users.")
    n_items: int = Field(
        2000, ge=80, description="Number of items; at least two for each of 40 subcategories."
    )
    n_brands: int = Field(60, ge=10, description="Number of brands; each serves one category.")
    n_history_days: int = Field(
        30, ge=1, description="Days of organic interactions before the first logged request."
    )
    n_days: int = Field(
        7, ge=1, description="Days of logged training requests; validation and test follow."
    )
    requests_per_user: float = Field(
        4.0, gt=0, description="Mean number of training requests of a user over all `n_days`."
    )
    n_eval_requests: int = Field(
        1000, ge=1, description="Requests of validation and of test, one a user at most."
    )
    organic_per_user: float = Field(
        18.0,
        gt=0,
        description="Mean number of organic positive interactions of a user over the history days; "
        "the daily rate goes on until test.",
    )
    n_recalled: int = Field(100, ge=2, description="Items recalled for a request, at most.")
    n_preranked: int = Field(40, ge=2, description="Items that the pre-ranker hands to the ranker.")
    n_ranked: int = Field(20, ge=1, description="Items that the ranker hands to the page.")
    n_exposed: int = Field(10, ge=1, description="Slots of the page.")
    base_click_rate: float = Field(
        0.015,
        gt=0,
        lt=1,
        description="Click probability of an item of mean quality that nothing speaks for.",
    )
    content_strength: float = Field(
        3.5,
        ge=0,
        description="How much interests, brand loyalty and price fit move the logit of a click. "
        "At 0 taste does not depend on content, and no content-aware label can help.",
    )
    brand_weight: float = Field(
        0.4, ge=0, description="Brand loyalty relative to subcategory affinity."
    )
    price_weight: float = Field(
        0.3, ge=0, description="Price fit relative to subcategory affinity."
    )
    sibling_affinity: float = Field(
        0.35,
        ge=0,
        le=1,
        description="Affinity to the other subcategories of a category of interest.",
    )
    quality_strength: float = Field(
        0.9, ge=0, description="How much an item's quality moves the logit of a click."
    )
    noise: float = Field(
        0.7,
        ge=0,
        description="Standard deviation of each user-item pair's own part of the logit.",
    )
    n_interests: int = Field(
        4, ge=2, le=40, description="Subcategories of interest a user has at most; half at least."
    )
    interest_correlation: float = Field(
        0.7,
        ge=0,
        le=1,
        description="Chance that a further interest of a user is related to an earlier one.",
    )
    late_interest_share: float = Field(
        0.4,
        ge=0,
        le=1,
        description="Share of further interests that organic history never shows.",
    )
    fame_follows_quality: float = Field(
        0.6, ge=0, le=1, description="Correlation of an item's fame with its quality."
    )
    fame_spread: float = Field(
        1.2, ge=0, description="Log-scale spread of how often items are met by chance."
    )
    new_item_share: float = Field(
        0.1, ge=0, le=1, description="Share of items released after the first day."
    )
    position_bias: float = Field(
        0.35, ge=0, description="Slot k (from 0) is looked at with probability (k + 1) ** -this."
    )
    max_pages: int = Field(
        1, ge=1, description="Most pages of one visit; a further page is a further request."
    )
    next_page_rate: float = Field(
        0.3, ge=0, le=1, description="Chance to ask for the next page after one without a click."
    )
    next_page_per_click: float = Field(
        0.2, ge=0, le=1, description="What each click on a page adds to that chance."
    )
    recall_popular: float = Field(
        0.35, ge=0, le=1, description="Share of recall drawn by production popularity."
    )
    recall_interest: float = Field(
        0.35,
        ge=0,
        le=1,
        description="Share of recall drawn from subcategories of interest; the rest is uniform.",
    )
    prerank_popularity: float = Field(
        2.0, ge=0, description="Weight of popularity in the production pre-ranker."
    )
    prerank_error: float = Field(
        3.0, ge=0, description="Standard deviation of the production pre-ranker's model error."
    )
    rank_popularity: float = Field(
        1.2, ge=0, description="Weight of popularity in the production ranker."
    )
    rank_error: float = Field(
        2.0, ge=0, description="Standard deviation of the production ranker's model error."
    )
    exploration: float = Field(
        1.0,
        ge=0,
        description="Temperature of the Gumbel noise on the ranker's scores; 0 = no exploration, "
        "propensities unknown.",
    )
    text_noise: float = Field(
        0.25, ge=0, le=1, description="Chance that a word of an item's text says nothing of it."
    )
    chunk_requests: int = Field(
        512, ge=1, description="Requests computed at once; changes memory, never a result."
    )

    @model_validator(mode="after")
    def _funnel_narrows(self) -> Self:
        if not self.n_recalled >= self.n_preranked >= self.n_ranked >= self.n_exposed:
            raise ValueError("n_recalled >= n_preranked >= n_ranked >= n_exposed")
        if self.recall_popular + self.recall_interest > 1:
            raise ValueError("recall_popular + recall_interest at most 1")
        return self
