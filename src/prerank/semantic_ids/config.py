"""Settings of the tokenize stage. Imports no numerical library, so the command line starts fast."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prerank.config import Config


class TokenizeConfig(Config):
    """How item vectors become semantic IDs."""

    tokenizer: Literal["rq-kmeans"] = Field(
        "rq-kmeans", description="how codebooks are fitted; rq-kmeans: k-means on the residuals"
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
