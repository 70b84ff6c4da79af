"""All that a training run holds between two epochs, as one file: a killed run goes on from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from prerank.progress import log
from prerank.ranking.objectives.base import Objective
from prerank.ranking.optimizer import RowTable
from prerank.ranking.rows import Draw
from prerank.store import read_part, write_part

if TYPE_CHECKING:
    from prerank.ranking.train import Training

FILE = "training.safetensors"


def can_restore(objective: Objective) -> bool:
    """Say whether the state below is all there is: not where an objective trains more beside."""
    has_more = any(True for _ in objective.parameters())
    return not has_more and type(objective).after_step is Objective.after_step


def store_state(training: Training, work: Path) -> None:
    """Write weights, moments, orders of rows, random state and records to ``work``."""
    draws = [draw.state() for draw in _draws(training)]
    about = {
        "records": training.records,
        "best": training.best,
        "since": training.since,
        "steps": {name: table.steps for name, table in _tables(training)},
        "draws": [state for *_, state in draws],
    }
    tensors = {f"model:{n}": t for n, t in training.model.state_dict().items()}
    tensors |= {f"best:{n}": t for n, t in (training.best_weights or {}).items()}
    tensors |= _moments(training)
    if training.device.type == "cuda":
        tensors["random:cuda"] = torch.cuda.get_rng_state()
    tensors["random"] = torch.get_rng_state()
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    for number, (ahead, left, _) in enumerate(draws):
        arrays |= {f"ahead:{number}": ahead, f"left:{number}": left}
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    write_part(work / FILE, arrays)


def restore_state(training: Training, work: Path) -> None:
    """Read what `store_state` wrote, if it is there and whole; else leave all as it is."""
    arrays = read_part(work / FILE)
    if arrays is None:
        return
    about = json.loads(arrays.pop("about").tobytes())
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def named(prefix: str) -> dict[str, Tensor]:
        found = {n: t for n, t in tensors.items() if n.startswith(prefix)}
        return {n.removeprefix(prefix): t.to(training.device) for n, t in found.items()}

    training.model.load_state_dict(named("model:"))
    training.best_weights = named("best:") or None
    for name, moment in _moments(training).items():
        moment.copy_(tensors[name].view_as(moment))  # files know no scalars
    for name, table in _tables(training):
        table.steps = about["steps"][name]
    for number, draw in enumerate(_draws(training)):
        ahead, left = arrays[f"ahead:{number}"], arrays[f"left:{number}"]
        draw.restore(ahead, left, about["draws"][number])
    torch.set_rng_state(tensors["random"])
    if training.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random:cuda"])
    training.records[:] = about["records"]
    training.best, training.since = about["best"], about["since"]
    log(f"train: going on after epoch {len(training.records)}")


def _moments(training: Training) -> dict[str, Tensor]:
    """Return the optimiser's own tensors by name; what is written to them it goes on from."""
    dense = training.optimizer.dense
    found = {
        f"dense:{number}:{kind}": moment
        for number, moments in enumerate(dense.moments)
        for kind, moment in enumerate(moments)
    }
    for name, table in _tables(training):
        for number, pair in enumerate(table.moments):
            found |= {f"{name}:{number}:{kind}": moment for kind, moment in enumerate(pair)}
    return found


def _tables(training: Training) -> list[tuple[str, RowTable]]:
    tables = {"users": training.optimizer.users, "items": training.optimizer.items}
    return [(name, table) for name, table in tables.items() if table is not None]


def _draws(training: Training) -> list[Draw]:
    return [d for d in (training.draw_exposed, training.draw_unexposed) if d is not None]
