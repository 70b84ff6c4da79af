"""Seeds: one root seed, named streams, no global state.

Each consumer asks for its own stream by name, so that adding a draw in one stage never changes
another stage's numbers.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for the stream ``names`` under ``seed``; equal input, equal output."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng(seed: int, *names: str | int) -> np.random.Generator:
    """Return a NumPy generator for the stream ``names`` under ``seed``."""
    return np.random.default_rng(derive(seed, *names))
