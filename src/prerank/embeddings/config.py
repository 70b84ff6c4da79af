"""Settings of the encode stage. Imports no numerical library, so the command line starts fast."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from prerank.config import Config

Encoder = Literal["lsa", "sentence-transformers", "given"]


class EncodeConfig(Config):
    """How items become vectors of the frozen semantic space."""

    encoder: Encoder = Field(
        "lsa",
        description="lsa: TF-IDF of the items' text and a truncated SVD, nothing to download; "
        "sentence-transformers: a text model; given: the catalog's own vectors",
    )
    embedding_dim: int = Field(
        96, ge=1, description="lsa: dimensions; fewer where the texts support fewer"
    )
    min_ngram: int = Field(1, ge=1, description="lsa: shortest word n-gram")
    max_ngram: int = Field(2, ge=1, description="lsa: longest word n-gram")
    min_df: int = Field(1, ge=1, description="lsa: an n-gram must occur in this many items")
    max_features: int = Field(
        100_000, ge=1, description="lsa: n-grams kept, those in the most items first"
    )
    model: str = Field(
        "sentence-transformers/all-MiniLM-L6-v2",
        description="sentence-transformers: a folder, an id on the Hugging Face hub, or "
        "`package:NAME/FOLDER` for a folder inside an installed Python package",
    )
    batch_size: int = Field(64, ge=1, description="sentence-transformers: texts in one batch")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")

    @model_validator(mode="after")
    def _ngrams_in_order(self) -> Self:
        if self.min_ngram > self.max_ngram:
            raise ValueError(f"min_ngram {self.min_ngram} is above max_ngram {self.max_ngram}")
        return self
