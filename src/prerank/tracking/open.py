"""From the recipe's `[tracking]` to trackers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prerank.errors import MissingExtraError
from prerank.tracking.config import TrackerName, TrackingConfig
from prerank.tracking.tracker import (
    FOLDER,
    LINES_FILE,
    About,
    JsonLines,
    Tracker,
    Tracking,
    sent_before,
)


def open_tracking(
    config: TrackingConfig, name: str, folder: Path, settings: Mapping[str, Any]
) -> Tracking:
    """Return what sends figures to `RUN/tracking/metrics.jsonl` and to the trackers asked for.

    Nothing is written, and no server called, before the first figure comes.

    Args:
        name: of the run.
        folder: of the run.
        settings: the resolved recipe, nested as it is.

    Raises:
        MissingExtraError: the package of a tracker is not installed.
    """
    for tracker in config.to:
        if find_spec(tracker) is None:
            raise MissingExtraError(
                f"the tracker {tracker} is not installed",
                where="tracking.to",
                hint=f"pip install 'prerank[{tracker}]'",
            )
    about = About(name, folder / FOLDER, flat(settings))
    openers: dict[str, Callable[[], Tracker]] = {
        LINES_FILE: lambda: JsonLines(about.folder / LINES_FILE)
    }
    openers |= {one: _opener(one, config, about) for one in config.to}
    return Tracking(openers, sent_before(about.folder / LINES_FILE))


def _opener(tracker: TrackerName, config: TrackingConfig, about: About) -> Callable[[], Tracker]:
    """Return what imports and opens one tracker: each takes a second to import."""

    def tensorboard() -> Tracker:
        from prerank.tracking.tensorboard import TensorBoard

        return TensorBoard(about)

    def mlflow() -> Tracker:
        from prerank.tracking.mlflow import MLflow

        return MLflow(about, config.mlflow_uri, config.experiment)

    def wandb() -> Tracker:
        from prerank.tracking.wandb import WandB

        return WandB(about, config.experiment, config.wandb_mode)

    match tracker:
        case "tensorboard":
            return tensorboard
        case "mlflow":
            return mlflow
        case "wandb":
            return wandb


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as ``section.key`` -> text."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = str(value)
    return found
