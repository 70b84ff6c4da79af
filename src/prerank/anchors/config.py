"""Settings of `finetune` and `generate`. Imports no torch: the command line starts fast."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from prerank.config import Config

Dtype = Literal["auto", "float32", "bfloat16"]
DEBIASED = "llm-debiased"
DECODED = ("llm", DEBIASED)
"""Anchors that the language model speaks; all others are made without it, or of these."""


class FinetuneConfig(Config):
    """How the next-semantic-ID model is trained (method.md stage 3)."""

    init: Literal["from-scratch", "checkpoint"] = Field(
        "from-scratch",
        description="from-scratch: a small Qwen2-architecture decoder with random weights; "
        "checkpoint: continue from the pre-trained causal language model in `checkpoint`",
    )
    checkpoint: str = Field(
        "", description="folder or hub id of a Hugging Face causal language model"
    )
    reuse: str = Field(
        "",
        description="folder `anchor_model` of another run: taken as it is, nothing is trained; for "
        "semantic IDs of the same codebooks, see tokenize.append_to",
    )
    lora: bool = Field(
        False,
        description="train low-rank adapters and the new token rows only; needs init=checkpoint",
    )
    lora_rank: int = Field(16, ge=1, description="rank of the adapters")
    lora_alpha: float = Field(32.0, gt=0, description="scale of the adapters is alpha / rank")
    hidden_size: int = Field(128, ge=8, description="width of the from-scratch decoder")
    intermediate_size: int = Field(384, ge=8, description="width of its feed-forward layers")
    n_layers: int = Field(2, ge=1, description="number of its layers")
    n_heads: int = Field(4, ge=1, description="number of its attention heads")
    max_history: int = Field(
        50, ge=1, description="items a sequence; longer histories are cut into several"
    )
    epochs: int = Field(
        0,
        ge=0,
        description="passes over the histories, at most; 0: as many as read two million items, "
        "between 3 and 30, or 10 where `patience` does not watch",
    )
    patience: int = Field(
        5,
        ge=0,
        description="stop after so many passes in a row whose held-out loss is above the lowest by "
        "more than half a percent, and keep the weights before them; 0, or fewer than five users "
        "held out: the last pass stays",
    )
    batch_size: int = Field(64, ge=1, description="sequences a step of the optimiser")
    tokens_at_once: int = Field(
        16384,
        ge=1,
        description="most tokens, padding included, in memory together; a larger batch goes "
        "through in parts whose gradients are summed (gradient accumulation)",
    )
    recompute: bool = Field(
        False,
        description="keep each layer's input only and compute the rest again in the backward "
        "pass (activation checkpointing): a third slower, a fraction of the memory",
    )
    learning_rate: float = Field(
        2e-3, gt=0, description="peak rate of AdamW; 1e-4 to 5e-4 suits a checkpoint"
    )
    warmup: float = Field(0.05, ge=0, lt=1, description="share of all steps with rising rate")
    weight_decay: float = Field(0.01, ge=0, description="decay of the weight matrices")
    alpha: float = Field(
        0.5,
        ge=0,
        le=1,
        description="popularity down-sampling: an item is kept with probability "
        "min(1, (t / frequency) ** alpha) in each epoch; 0 turns it off",
    )
    frequency_quantile: float = Field(
        0.9, ge=0, le=1, description="t is this quantile of the items' frequencies"
    )
    held_out: float = Field(
        0.03,
        ge=0,
        le=0.5,
        description="share of users kept out: they measure the loss and choose the pass that stays",
    )
    order: Literal["auto", "time", "shuffle"] = Field(
        "auto",
        description="time: sequences as they happened; shuffle: a new order in each epoch; "
        "auto: shuffle where the data set has no time",
    )
    dtype: Dtype = Field(
        "auto",
        description="arithmetic of the matrix products; weights stay float32. "
        "auto: bfloat16 on a GPU, float32 on a CPU",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")

    def passes(self, n_items: float, guarded: bool = True) -> int:
        """Return the passes over histories of ``n_items`` items in all, at most.

        Args:
            guarded: held-out users tell when it is enough.
        """
        return self.epochs or max(3, min(30 if guarded else 10, round(2e6 / max(n_items, 1.0))))

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.init == "checkpoint") != bool(self.checkpoint):
            raise ValueError("`checkpoint` must be given exactly when init is `checkpoint`")
        if self.lora and self.init != "checkpoint":
            raise ValueError("`lora` needs init = `checkpoint`: a random base learns nothing")
        if self.hidden_size % (2 * self.n_heads):
            raise ValueError("`hidden_size` must be a multiple of 2 * `n_heads`")
        return self


class GenerateConfig(Config):
    """How interest anchors are decoded (method.md stage 4)."""

    n_anchors: int = Field(100, ge=1, description="anchors kept for each user, best first")
    beam_width: int = Field(120, ge=1, description="beams kept after the first level")
    beam_growth: float = Field(
        1.0, ge=1, le=8, description="the width grows by this factor at each further level"
    )
    first_code_quota: int = Field(
        0, ge=0, description="most anchors that may share a first-level code; 0 = no limit"
    )
    popularity_correction: float = Field(
        0.75,
        ge=0,
        le=2,
        description="anchors `llm-debiased` (extension): semantic IDs are ranked by log p(sid | "
        "history) - popularity_correction * log p(sid), p(sid) their share in all histories: what "
        "this user wants more than everybody does; `llm` has none",
    )
    max_history: int = Field(50, ge=1, description="items of a history that the model reads")
    history_sample: Literal["recent", "clusters"] = Field(
        "recent",
        description="which items of a longer history are read. recent: the last ones; clusters: "
        "an even sample of the user's interests, the most recent items of each first-level code "
        "in turn",
    )
    batch_size: int = Field(64, ge=1, description="most users decoded together")
    tokens_at_once: int = Field(
        65536,
        ge=1,
        description="most tokens in memory together, histories and beams; long histories are "
        "decoded in smaller batches",
    )
    shard_users: int = Field(
        8192, ge=1, description="users a file of work in progress; what a kill can cost"
    )
    dtype: Dtype = Field(
        "auto", description="weights and arithmetic; auto: bfloat16 on a GPU, float32 on a CPU"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")

    def of_source(self, source: str) -> GenerateConfig:
        """Return the settings of anchors ``source``: popularity is corrected in one kind only."""
        if source == DEBIASED:
            return self
        return self.model_copy(update={"popularity_correction": 0.0})

    def widths(self, n_levels: int) -> tuple[int, ...]:
        """Return the number of beams kept after each level, (n_levels,)."""
        grown = (self.beam_width * self.beam_growth**level for level in range(n_levels))
        return tuple(int(width) for width in grown)

    def has_beams(self, n_anchors: int) -> bool:
        """Say whether there may be so many anchors; where the width grows the levels tell."""
        return self.beam_growth > 1 or n_anchors <= self.beam_width

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if not self.has_beams(self.n_anchors):
            raise ValueError("`n_anchors` must not exceed `beam_width` when the width is constant")
        return self
