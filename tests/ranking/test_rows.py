import numpy as np
import torch

from prerank.ranking.config import TrainConfig
from prerank.ranking.context import ScoringContext
from prerank.ranking.rows import Draw, exposed_rows, pseudo_rows

CPU = torch.device("cpu")


def test_draw_gives_each_row_once_a_pass() -> None:
    draw = Draw(5, np.random.default_rng(0))
    taken = torch.cat([draw.take(3) for _ in range(5)]).tolist()
    passes = [sorted(taken[start : start + 5]) for start in (0, 5, 10)]
    assert passes == [[0, 1, 2, 3, 4]] * 3


def test_draw_does_not_depend_on_the_size_of_its_sips() -> None:
    one, two = Draw(7, np.random.default_rng(3)), Draw(7, np.random.default_rng(3))
    assert one.take(20).tolist() == torch.cat([two.take(5) for _ in range(4)]).tolist()


def test_exposed_rows_are_training_rows_with_known_clicks(world, content) -> None:  # type: ignore[no-untyped-def]
    data = world()
    data.exposures.click[1] = -1
    context = ScoringContext.of(data, content, TrainConfig())
    rows = exposed_rows(data, context, CPU)
    keep = (data.exposures.split == 0) & (data.exposures.click >= 0)
    assert len(rows) == keep.sum() == 60 * 24 - 1
    assert rows.target.tolist() == data.exposures.click[keep].tolist()
    assert set(rows.weight.tolist()) == {1.0}


def test_abstaining_pseudo_labels_are_left_out(world, content, labels) -> None:  # type: ignore[no-untyped-def]
    context = ScoringContext.of(world(), content, TrainConfig())
    confidence = np.resize([0.0, 2.0], 600)
    rows = pseudo_rows(labels(0.25, confidence), context, CPU)
    assert len(rows) == 300
    assert set(rows.weight.tolist()) == {2.0}
    assert set(rows.target.tolist()) == {0.25}
