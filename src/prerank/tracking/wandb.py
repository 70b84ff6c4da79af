"""Figures to Weights & Biases; offline, into the run's folder, unless the recipe says otherwise.

Each start of a run is a W&B run of its own, in the group of the run's name: an offline run cannot
be gone on with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import wandb

from prerank.tracking.tracker import About, End


class WandB:
    """One W&B run: its config is the recipe, its history our figures."""

    goes_on = False

    def __init__(self, about: About, project: str, mode: Literal["offline", "online"]) -> None:
        quiet = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            silent=True,
            x_disable_meta=True,
            x_save_requirements=False,
            x_disable_stats=True,
        )
        self._run = wandb.init(
            project=project,
            group=about.name,
            name=about.name,
            dir=about.folder,
            config=dict(about.settings),
            mode=mode,
            settings=quiet,
        )
        # Epochs of several models interleave, so W&B's own rising step cannot be ours.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add one row to the history."""
        self._run.log({**metrics, "step": step})

    def close(self, end: End = "finished") -> None:
        """Write what is held back and end the run; W&B knows "failed" by its exit code."""
        self._run.finish(exit_code=0 if end == "finished" else 1)
