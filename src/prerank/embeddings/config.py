"""Settings of the encode stage. Imports no numerical library, so the command line starts fast."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from prerank.config import Config
from prerank.plugins import PluginConfig

OneEncoder = Literal["lsa", "sentence-transformers", "text-model", "image", "given", "plugin"]
Encoder = Literal[
    "lsa", "sentence-transformers", "text-model", "image", "given", "plugin", "fusion"
]


class EncoderConfig(PluginConfig):
    """Settings of the encoders, each named in a key's description by those who read it."""

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
        "",
        description="sentence-transformers, text-model, image: a folder, an id on the Hugging Face "
        "hub, or `package:NAME/FOLDER` for a folder inside an installed Python package; empty: "
        "all-MiniLM-L6-v2 for text, clip-vit-base-patch32 for images",
    )
    pooling: Literal["mean", "cls", "last-token"] = Field(
        "mean",
        description="text-model: which token states become the vector; the model's card says",
    )
    prefix: str = Field(
        "", description='text-model: put before each text, such as "passage: "; the card says'
    )
    max_tokens: int = Field(
        256, ge=2, description="text-model: tokens of a text read, at most; the rest is cut off"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="models: auto is bfloat16 on a GPU, float32 on a CPU"
    )
    batch_size: int = Field(64, ge=1, description="models: texts or images in one batch")
    shard_items: int = Field(
        16_384, ge=1, description="models: items in a shard; a killed run loses one shard at most"
    )
    image_threads: int = Field(4, ge=1, description="image: threads that read and decode files")
    max_unreadable: float = Field(
        0.01,
        ge=0,
        le=1,
        description="image: share of unreadable images that is tolerated (they count as missing)",
    )
    device: str = Field("auto", description="models: auto, cpu, cuda or cuda:N")

    @model_validator(mode="after")
    def _ngrams_in_order(self) -> Self:
        if self.min_ngram > self.max_ngram:
            raise ValueError(f"min_ngram {self.min_ngram} is above max_ngram {self.max_ngram}")
        return self


class PartConfig(EncoderConfig):
    """One modality of a fusion: an encoder and its weight."""

    encoder: OneEncoder = Field("lsa", description="as in [encode]")
    weight: float = Field(
        1.0, gt=0, description="share of this modality in the cosine of two fused items"
    )

    @model_validator(mode="after")
    def _plugin_is_named(self) -> Self:
        self.require_plugin(self.encoder, "encoder")
        return self


class FusionConfig(Config):
    """How the vectors of several encoders become one."""

    method: Literal["concat-pca", "whitened-mean"] = Field(
        "concat-pca",
        description="concat-pca: weighted concatenation, then PCA; whitened-mean: mean of the "
        "modalities, each whitened; for encoders with one shared space, such as CLIP's",
    )
    embedding_dim: int = Field(
        256, ge=1, description="concat-pca: dimensions kept; fewer where the parts have fewer"
    )
    parts: tuple[PartConfig, ...] = Field((), description="the modalities, two or more")


class EncodeConfig(EncoderConfig):
    """How items become vectors of the frozen semantic space."""

    encoder: Encoder = Field(
        "lsa",
        description="lsa: TF-IDF of the items' text and a truncated SVD, nothing to download; "
        "sentence-transformers: a text model; text-model: any Hugging Face text encoder, with "
        "`pooling`; image: CLIP or SigLIP; given: the catalog's own vectors; plugin: a function of "
        "another package; fusion: several",
    )
    fusion: FusionConfig = Field(default_factory=FusionConfig, description="the encoder fusion")

    @model_validator(mode="after")
    def _fusion_has_parts(self) -> Self:
        self.require_plugin(self.encoder, "encoder")
        if self.encoder == "fusion" and len(self.fusion.parts) < 2:
            raise ValueError("encoder fusion needs two or more [[encode.fusion.parts]]")
        return self
