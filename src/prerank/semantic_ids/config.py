"""Settings of the tokenize stage. Imports no numerical library, so the command line starts fast."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prerank.config import Config


class RqVaeConfig(Config):
    """Settings of the trainer rq-vae."""

    code_dim: int = Field(
        0, ge=0, description="dimensions of the latent space; 0: those of the item vectors"
    )
    hidden_dim: int = Field(256, ge=1, description="width of encoder's and decoder's hidden layer")
    epochs: int = Field(20, ge=1, description="passes over the items fitted on")
    batch_size: int = Field(1024, ge=1, description="items in one step")
    learning_rate: float = Field(1e-3, gt=0, description="peak of the one-cycle schedule")
    commitment_weight: float = Field(
        0.25, ge=0, description="weight of the commitment loss beside the reconstruction loss"
    )
    progressive: bool = Field(
        True,
        description="reconstruct after every level, so that each prefix of a semantic ID means "
        "something by itself; false: after the last level only",
    )
    gradient: Literal["straight-through", "rotation"] = Field(
        "straight-through",
        description="how gradients pass the quantiser: as they are, or turned by the rotation "
        "between a latent and its codes",
    )
    ema_decay: float = Field(
        0.95, ge=0, lt=1, description="decay of the averages that move the codebooks"
    )
    restart_below: float = Field(
        0.05,
        ge=0,
        description="a code used less than this share of an even share is dead and restarts at a "
        "random item; 0: never",
    )
    balance: Literal["none", "last", "all"] = Field(
        "none",
        description="levels whose codes are given out evenly while training (Sinkhorn); IDs "
        "themselves are always the nearest codes",
    )
    balance_epsilon: float = Field(
        0.05, gt=0, description="softness of the balanced assignment; smaller is harder"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")


class GateConfig(Config):
    """When semantic IDs are too bad to go on; see docs/concepts/semantic-ids.md."""

    min_items: int = Field(
        100, ge=1, description="items with content from which on the gate judges a catalogue"
    )
    min_used_share: float = Field(
        0.5, ge=0, le=1, description="codes in use at every level, at least this share; 0: any"
    )
    min_perplexity_share: float = Field(
        0.05, ge=0, le=1, description="perplexity of code use over codes, at every level; 0: any"
    )
    max_bucket_share: float = Field(
        0.25, gt=0, le=1, description="share of the items in one semantic ID, at most; 1: any"
    )


class TokenizeConfig(Config):
    """How item vectors become semantic IDs."""

    trainer: Literal["rq-kmeans", "rq-vae", "item-id"] = Field(
        "rq-kmeans",
        description="how codebooks are fitted; rq-kmeans: k-means on the residuals; rq-vae: a "
        "network trained with residual quantisation, the paper's; item-id: no semantic IDs, every "
        "item is one code of one level (the paper's ablation; other keys do not matter)",
    )
    n_levels: int = Field(3, ge=1, le=8, description="levels (codes of one semantic ID)")
    codebook_size: int = Field(
        256,
        ge=1,
        le=65536,
        description="codes a level; fewer where a level has fewer distinct vectors (256 suits up "
        "to 100,000 items, 1024 to 8192 larger catalogues)",
    )
    iterations: int = Field(25, ge=1, description="Lloyd iterations a level, at most")
    tolerance: float = Field(
        1e-4,
        ge=0,
        description="a level stops when one iteration lowers its squared error by less than this "
        "share; 0: never earlier",
    )
    sample_per_code: int = Field(
        256,
        ge=1,
        description="items to fit on, at most, per code of `codebook_size`, drawn evenly; all "
        "items get a semantic ID",
    )
    capacity: int = Field(
        0,
        ge=0,
        description="items of one semantic ID, at most; the farther ones move to the next last "
        "code with room (FORGE: 5); 0: no limit",
    )
    append_to: str = Field(
        "",
        description="folder of published semantic IDs of another run: known items keep theirs, "
        "new items get one from the same codebooks; nothing is fitted",
    )
    max_space_change: float = Field(
        1.1,
        ge=1,
        description="append_to: known items may be left over by this much more than when "
        "published, else the embeddings are of another space",
    )
    gate: GateConfig = Field(default_factory=GateConfig, description="the quality gate")
    rqvae: RqVaeConfig = Field(default_factory=RqVaeConfig, description="the trainer rq-vae")
