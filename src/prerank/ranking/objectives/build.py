"""From the recipe's word to the objective."""

from __future__ import annotations

from prerank.ranking.config import ObjectiveName
from prerank.ranking.objectives.adversary import Adapted
from prerank.ranking.objectives.base import Objective
from prerank.ranking.objectives.damcar import Damcar
from prerank.ranking.objectives.distillation import Distillation
from prerank.ranking.objectives.doubly_robust import DoublyRobust
from prerank.ranking.objectives.ips import Ips, Snips
from prerank.ranking.objectives.pointwise import Pointwise
from prerank.ranking.objectives.transfer import Transfer
from prerank.ranking.objectives.ukd import Ukd


def objective_class(name: ObjectiveName) -> type[Objective]:
    """Return the class of the objective ``name``; its ``of`` makes one for a training."""
    match name:
        case "pointwise":
            return Pointwise
        case "ips":
            return Ips
        case "snips":
            return Snips
        case "dr":
            return DoublyRobust
        case "distillation":
            return Distillation
        case "transfer":
            return Transfer
        case "adapted":
            return Adapted
        case "ukd":
            return Ukd
        case "damcar":
            return Damcar
