"""Settings of the trackers. They decide no artifact, so no fingerprint holds them."""

from __future__ import annotations

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from prerank.config import Config

TrackerName = Literal["tensorboard", "mlflow", "wandb"]


class TrackingConfig(Config):
    """Where figures go besides the run's `tracking/metrics.jsonl`; no artifact changes."""

    to: tuple[TrackerName, ...] = Field(
        (), description="any of `tensorboard`, `mlflow`, `wandb`; each is an extra of that name"
    )
    experiment: str = Field(
        "prerank", min_length=1, description="MLflow experiment, Weights & Biases project"
    )
    mlflow_uri: str = Field(
        "",
        description="`mlflow`: address of the tracking server, such as `http://127.0.0.1:5000`; a "
        "name and a password go into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    )
    wandb_mode: Literal["offline", "online"] = Field(
        "offline",
        description="`wandb`: offline writes into the run's folder, for `wandb sync` later",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.to)) != len(self.to):
            raise ValueError("`to` names a tracker twice")
        if "mlflow" in self.to and not self.mlflow_uri:
            raise ValueError("the tracker mlflow needs `mlflow_uri`")
        if "@" in urlsplit(self.mlflow_uri).netloc:
            # The recipe is printed, stored with the run and shown in its report.
            raise ValueError("`mlflow_uri` must hold no password; see MLFLOW_TRACKING_PASSWORD")
        return self
