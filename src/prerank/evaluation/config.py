"""Settings of the evaluate stage."""

from __future__ import annotations

from typing import Self

from pydantic import Field, PositiveInt, model_validator

from prerank.config import Config


class EvaluateConfig(Config):
    """What is measured, against whom, and how sure we want to be."""

    ks: tuple[PositiveInt, ...] = Field(
        (3, 5, 10), min_length=1, description="cut-offs k of HR@k, each > 0"
    )
    list_size: int = Field(
        10, ge=1, description="length of the list judged by NDCG, coverage, Gini and diversity"
    )
    tail_below: int = Field(
        20, ge=0, description="an item exposed fewer times in training is long tail"
    )
    head_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="the most exposed items that hold this share of training exposures are head",
    )
    ece_bins: int = Field(15, ge=1, description="equal-mass bins of the calibration error")
    n_resamples: int = Field(1000, ge=10, description="bootstrap draws of users and training seeds")
    interval: float = Field(0.95, gt=0, lt=1, description="level of all intervals")
    baselines: tuple[str, ...] = Field(
        ("exposed-only",), description="methods that every other method is compared with, paired"
    )
    method: str = Field("gpl", description="the method that summary and tables put first")
    history_control: str = Field(
        "gpl-history",
        description="the control whose anchors are the user's own history (no LLM)",
    )
    controls: tuple[str, ...] = Field(
        (
            "gpl-history",
            "gpl-random",
            "gpl-popular",
            "gpl-shuffled",
            "gpl-uniform-weight",
            "gpl-shuffled-weight",
        ),
        description="methods shown right under `method`, whatever their result",
    )
    ceilings: tuple[str, ...] = Field(
        ("true-labels", "ranker"),
        description="methods that know the truth or are too heavy to serve: shown, but out of "
        "competition",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("ks", "baselines"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise ValueError(f"{key} must be distinct: {', '.join(map(str, values))}")
        return self
