"""Settings of the pre-ranker and of its training. Light: imports no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from prerank.artifacts import PseudoLabels
from prerank.plugins import PluginConfig

ModelName = Literal["two-tower", "three-tower", "int-tower", "cold", "din", "plugin"]
ObjectiveName = Literal[
    "pointwise",
    "ips",
    "snips",
    "dr",
    "distillation",
    "transfer",
    "adapted",
    "ukd",
    "damcar",
]

Pairs = Literal["none", "labels", "unlabeled"]
"""Unexposed pairs of a method: none, pairs with pseudo-labels, or pairs without any on purpose."""


class TrainConfig(PluginConfig):
    """How the pre-ranker is built and trained: ``L_al(D_e) + pseudo_weight * L_pl(D_u)``."""

    model: ModelName = Field(
        "two-tower",
        description="architecture of the pre-ranker: `two-tower`, `three-tower` (with a tiny "
        "cross tower), `int-tower` (early interaction), `cold` (one small MLP over all fields); "
        "`din` is a ranker with target attention, the teacher of the baselines, too heavy to "
        "serve; `plugin`: a function of another package",
    )
    objective: ObjectiveName = Field(
        "pointwise",
        description="what a step minimises; `pointwise`: clicks and pseudo-labels row by row; the "
        "others are baselines (docs/concepts/baselines.md)",
    )
    distillation_weight: float = Field(
        0.5, ge=0, le=1, description="share of the ranker's score in the target of exposed rows"
    )
    pretrain_epochs: int = Field(
        1, ge=1, description="`transfer`: epochs on ranker scores before the recipe's own"
    )
    propensity_floor: float = Field(
        0.05, gt=0, le=1, description="`ips`, `snips`, `dr`: least propensity of exposure"
    )
    adversary_weight: float = Field(
        0.003,
        ge=0,
        description="`adapted`, `damcar`: weight of the domain adversary, once it is in full",
    )
    ema_decay: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="`damcar`: how slowly the moving copy follows, once it is old enough",
    )
    hard_share: float = Field(
        0.5, gt=0, le=1, description="`damcar`: share of a step's unexposed rows that is hard"
    )
    similarity: Literal["dot", "cosine"] = Field(
        "dot", description="two-tower: how a user and an item vector meet"
    )
    temperature: float = Field(0.1, gt=0, description="two-tower: what a cosine is divided by")
    n_heads: int = Field(4, ge=1, description="int-tower: subspaces in which layers meet an item")
    cross_hidden: int = Field(16, ge=1, description="three-tower: width of the cross tower")
    top_features: int = Field(
        0,
        ge=0,
        description="cold: keep so many of the most important fields, found by a first training "
        "with all of them; 0: keep all",
    )
    kept_features: tuple[str, ...] = Field(
        (), description="cold: the fields to read, such as `user:user id`; empty: all"
    )
    embedding_dim: int = Field(32, ge=1, description="size of id embeddings and of both vectors")
    hidden: tuple[PositiveInt, ...] = Field(
        (64,), description="hidden layer sizes of each tower, each > 0"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on hidden layers while training")
    id_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of ids replaced by the unknown id while training"
    )
    min_id_rows: int = Field(
        30,
        ge=0,
        description="training rows (exposed and pseudo-labeled) that a user or item needs for an "
        "id embedding of its own; rarer ids share the unknown one",
    )
    learning_rate: float = Field(0.004, gt=0, description="AdamW step size")
    weight_decay: float = Field(0.0, ge=0, description="AdamW decoupled weight decay")
    row_updates: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Adam on the rows that a step touches, instead of whole id tables; auto: for "
        "tables of more than 100,000 rows",
    )
    rows_on_disk: bool = Field(
        False,
        description="keep the exposed training rows in mapped temporary files: for more rows than "
        "memory; the results are the same",
    )
    batch_size: int = Field(2048, ge=1, description="exposed rows in a step")
    group_rows: int = Field(
        8,
        ge=1,
        description="most rows of one user and history that are drawn together: a step computes "
        "the user's side once for them; 1: every row is drawn by itself",
    )
    epochs: int = Field(10, ge=1, description="most passes over the exposed training rows")
    patience: int = Field(2, ge=0, description="epochs without a better validation; 0: never stop")
    validation: str = Field(
        "exposures",
        description="what early stopping watches: `exposures` (the logged validation exposures) "
        "or the name of a pool, whose validation rows are used with their truth",
    )
    pseudo_weight: float = Field(1.0, ge=0, description="lambda, the weight of L_pl")
    in_batch_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the batch softmax of each click against the step's other clicked "
        "items, with logQ correction, beside any objective; 0: none",
    )
    unexposed_ratio: float = Field(
        1.0, gt=0, description="pseudo-labeled rows for each exposed row in a step"
    )
    numeric: Literal["normalised", "buckets"] = Field(
        "normalised",
        description="how numbers are read: standardised, or as categories cut at train quantiles",
    )
    n_buckets: int = Field(16, ge=2, description="buckets of a number")
    max_values: int = Field(
        10, ge=1, description="values read of a multi-valued feature, latest ones of a sequence"
    )
    sequence_pooling: Literal["mean", "attention"] = Field(
        "mean", description="how the history and sequence features become one vector"
    )
    max_history: int = Field(50, ge=1, description="interactions read of a user's history")
    use_user_id: bool = Field(True, description="give the user tower an embedding of the user id")
    use_item_id: bool = Field(True, description="give the item tower an embedding of the item id")
    use_content: bool = Field(True, description="read the items' frozen content vectors")
    use_history: bool = Field(True, description="read the user's history")
    use_popularity: bool = Field(
        False,
        description="give each item a number more, log(1 + its training exposures), called `log "
        "exposures`; for logs whose items have no such statistic. Set in [train] teachers read it "
        "too",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="arithmetic of the matrix products of training; weights, losses and scores "
        "stay float32. `bfloat16` is there for GPUs, but tested on a CPU only: no GPU has been "
        "measured",
    )
    device: str = Field("cpu", description="`cpu`, `cuda` or `auto` (cuda where there is one)")
    threads: int = Field(0, ge=0, description="CPU threads; 0: as torch is set")

    @model_validator(mode="after")
    def _plugin_is_named(self) -> Self:
        self.require_plugin(self.model, "model")
        return self

    @property
    def reads(self) -> tuple[Pairs, ...]:
        """The kinds of unexposed pairs that the objective can learn beside."""
        match self.objective:
            case "pointwise" | "distillation":
                return ("none", "labels")
            case "transfer" | "ukd":
                return ("labels",)
            case _:
                return ("unlabeled",)

    def reads_weight(self, has_labels: bool) -> bool:
        """Say whether ``pseudo_weight`` decides anything, with pseudo-labels or without."""
        match self.objective:
            case "pointwise" | "distillation":
                return has_labels
            case "ips" | "snips" | "dr" | "adapted":
                return False
            case _:
                return True

    @property
    def has_adversary(self) -> bool:
        """Say whether ``adversary_weight`` is read."""
        return self.objective in ("adapted", "damcar")

    @property
    def needs_teacher(self) -> bool:
        """Say whether a ranker's scores of exposed rows are read."""
        return self.objective in ("distillation", "transfer")


def earned_weight(config: TrainConfig, labels: PseudoLabels | None) -> TrainConfig:
    """Return the config with the share of lambda that ``labels`` have earned."""
    if labels is None:
        return config
    earned = config.pseudo_weight * float(labels.fit.get("pseudo_weight_factor", 1.0))
    return config.model_copy(update={"pseudo_weight": earned})
