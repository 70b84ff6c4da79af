"""Figures as TensorBoard event files in the run's folder: `tensorboard --logdir RUN/tracking`."""

from __future__ import annotations

from collections.abc import Mapping

from torch.utils.tensorboard import SummaryWriter

from prerank.tracking.tracker import About, End


class TensorBoard:
    """An event file, and the recipe as its text."""

    def __init__(self, about: About) -> None:
        folder = about.folder / "tensorboard"
        self.goes_on = folder.is_dir()  # TensorBoard shows all event files of a folder as one
        self._writer = SummaryWriter(str(folder))
        lines = [f"    {key} = {value}" for key, value in about.settings.items()]
        self._writer.add_text("recipe", "\n".join(lines))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one scalar a figure."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, end: End = "finished") -> None:
        """Close the event file."""
        self._writer.close()
