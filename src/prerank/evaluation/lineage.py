"""What was made from what, laid out as a graph: one column a stage, parents to the left.

Almost everything is made from the dataset and the embeddings, too: a line to a parent that another
parent was made from is left out, so that what is drawn can be followed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prerank.evaluation.extra import StageExtra

VERBS = (
    "prepare",
    "encode",
    "tokenize",
    "finetune",
    "generate",
    "teach",
    "label",
    "train",
    "evaluate",
    "compare",
    "simulate",
)
COLUMN, ROW, WIDTH, HEIGHT, HEAD = 190, 37, 154, 31, 26
NAME_LENGTH, MARK_LENGTH = 21, 8


@dataclass(frozen=True)
class Node:
    """One artifact, or all training seeds of one method.

    Attributes:
        key: of the (first) artifact in the store.
        name: what is written on it.
        mark: the first digits of its fingerprint, or how many seeds it stands for.
        x, y: its upper left corner.
        parents: keys of the nodes it was made from.
    """

    key: str
    name: str
    mark: str
    x: int
    y: int
    parents: tuple[str, ...]


@dataclass(frozen=True)
class Lineage:
    """A graph ready to draw.

    Attributes:
        width, height: of the drawing.
        heads: (x, verb) of each column.
        nodes: left to right, top to bottom.
        edges: SVG paths from the parents that no other parent was made from.
    """

    width: int
    height: int
    heads: tuple[tuple[int, str], ...]
    nodes: tuple[Node, ...]
    edges: tuple[str, ...]


def lineage(stages: Sequence[StageExtra]) -> Lineage | None:
    """Lay out the artifacts of a run; None if it is not known what they were made from."""
    if not all("parents" in one and "verb" in one for one in stages) or not stages:
        return None
    groups: dict[str, list[StageExtra]] = {}
    for one in stages:
        groups.setdefault(_group(one), []).append(one)
    group_of = {one["stage"]: group for group, members in groups.items() for one in members}
    verbs = [verb for verb in VERBS if any(m[0]["verb"] == verb for m in groups.values())]
    placed: dict[str, Node] = {}
    for column, verb in enumerate(verbs):
        mine = {
            group: tuple(dict.fromkeys(group_of[p] for p in m[0]["parents"] if p in group_of))
            for group, m in groups.items()
            if m[0]["verb"] == verb
        }
        # A child stands about as high as its parents: fewer lines cross.
        ordered = sorted(mine, key=lambda group: (_mean_height(placed, mine[group]), group))
        for row, group in enumerate(ordered):
            placed[group] = _node(group, groups[group], column, row, mine[group])
    tallest = max(node.y for node in placed.values())
    return Lineage(
        width=(len(verbs) - 1) * COLUMN + WIDTH + 4,
        height=tallest + HEIGHT + 4,
        heads=tuple((2 + column * COLUMN, verb) for column, verb in enumerate(verbs)),
        nodes=tuple(placed.values()),
        edges=tuple(
            _edge(placed[parent], node)
            for node in placed.values()
            for parent in _nearest(placed, node)
        ),
    )


def _nearest(placed: Mapping[str, Node], node: Node) -> list[str]:
    """Return the parents of a node that are not ancestors of its other parents."""
    farther: set[str] = set()
    waiting = [parent for parent in node.parents if parent in placed]
    near = list(waiting)
    while waiting:
        beyond = [p for p in placed[waiting.pop()].parents if p in placed and p not in farther]
        farther.update(beyond)
        waiting += beyond
    return [parent for parent in near if parent not in farther]


def _group(one: StageExtra) -> str:
    """Return the key without the training seed: seeds of one arm are drawn as one."""
    return one["stage"].rpartition("/")[0] if one["verb"] == "train" else one["stage"]


def _mean_height(placed: Mapping[str, Node], parents: Sequence[str]) -> float:
    heights = [placed[parent].y for parent in parents if parent in placed]
    # The dataset and the embeddings are everybody's parents; the last parent tells most.
    return float(heights[-1]) if heights else 0.0


def _node(
    group: str, members: Sequence[StageExtra], column: int, row: int, parents: tuple[str, ...]
) -> Node:
    name = group.partition("/")[2] or group
    mark = members[0]["fingerprint"][:MARK_LENGTH]
    return Node(
        key=members[0]["stage"],
        name=name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…",
        mark=mark if len(members) == 1 else f"{len(members)} seeds, {mark}",
        x=2 + column * COLUMN,
        y=HEAD + row * ROW,
        parents=parents,
    )


def _edge(parent: Node, child: Node) -> str:
    x1, y1 = parent.x + WIDTH, parent.y + HEIGHT // 2
    x2, y2 = child.x, child.y + HEIGHT // 2
    bend = x1 + (COLUMN - WIDTH) // 2, x2 - (COLUMN - WIDTH) // 2
    return f"M{x1} {y1}C{bend[0]} {y1} {bend[1]} {y2} {x2} {y2}"
