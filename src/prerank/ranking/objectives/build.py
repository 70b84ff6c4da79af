"""From the recipe's word to the objective."""

from __future__ import annotations

from prerank.ranking.config import ObjectiveName
from prerank.ranking.objectives.base import Objective
from prerank.ranking.objectives.pointwise import Pointwise


def objective_class(name: ObjectiveName) -> type[Objective]:
    """Return the class of the objective ``name``; its ``of`` makes one for a training."""
    match name:
        case "pointwise":
            return Pointwise
