"""Devices by name: the one place that turns a recipe's ``device`` into torch's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from prerank.errors import ConfigError, first_line


def resolve_device(name: str, where: str = "device") -> torch.device:
    """Return the device that ``name`` stands for; raise ConfigError if it is not there.

    Args:
        where: the key that says ``name``.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            "the device is not there",
            where=where,
            must="auto, cpu, cuda or cuda:N of this machine",
            got=f"{name} ({first_line(error)})",
        ) from None
    return device


@contextmanager
def torch_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch for a while, on the CPU and on ``device``; its random state is put back after."""
    on_gpu = device.type == "cuda"
    current = torch.cuda.current_device() if on_gpu and device.index is None else device.index
    devices = [current] if on_gpu else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
