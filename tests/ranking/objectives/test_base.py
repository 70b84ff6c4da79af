from math import log

import pytest
import torch

from prerank.ranking.objectives.base import Batch, Part
from prerank.ranking.objectives.pointwise import Pointwise
from prerank.ranking.rows import Rows


def rows(n: int, target: float = 0.0, weight: float = 1.0) -> Rows:
    index = torch.arange(n)
    filled = (torch.full((n,), value) for value in (target, weight))
    return Rows(index, index, index, index.int(), *filled)


def part(logits: list[float], target: float = 0.0, weight: float = 1.0) -> Part:
    n = len(logits)
    return Part(torch.arange(n), rows(n, target, weight), torch.tensor(logits), torch.zeros(n, 2))


def test_the_first_rows() -> None:
    assert rows(5).first(2).user.tolist() == [0, 1]
    assert len(rows(5).first(0)) == 0


def test_pointwise_by_hand() -> None:
    # p = 3/4: a click costs -log 3/4; label 0 costs -log 1/4, whatever the scale of the weight.
    batch = Batch(part([log(3)], target=1.0), part([log(3)], weight=5.0), 0)
    parts = Pointwise().loss(batch)
    assert parts.al.item() == pytest.approx(-log(3 / 4))
    assert parts.pl.item() == pytest.approx(-log(1 / 4))
    assert parts.other is None


def test_without_unexposed_rows_there_is_no_second_part() -> None:
    assert Pointwise().loss(Batch(part([0.0]), part([]), 0)).pl is None
