"""Which unexposed pairs are labelled."""

from __future__ import annotations

from dataclasses import dataclass

from prerank.data.unexposed import Beside, UnexposedPairs


@dataclass(frozen=True, eq=False)
class Chosen:
    """The pairs to label, and what they are a sample of.

    Attributes:
        pairs: D_u, or a sample of it.
        n_unexposed: number of pairs in all of D_u.
        beside: which exposures are D_e.
    """

    pairs: UnexposedPairs
    n_unexposed: int
    beside: Beside
