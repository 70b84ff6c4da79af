import numpy as np
import torch

from prerank.ranking.config import TrainConfig
from prerank.ranking.context import ScoringContext
from prerank.ranking.rows import Draw, Rows, exposed_rows, pseudo_rows

CPU = torch.device("cpu")


def numbered(n_rows: int) -> Rows:
    """Return rows whose user is their number."""
    number, nothing = torch.arange(n_rows), torch.zeros(n_rows)
    return Rows(number, 10 * number, number, number.int(), nothing, nothing)


def test_draw_gives_each_row_once_a_pass() -> None:
    draw = Draw(numbered(5), np.random.default_rng(0), CPU)
    taken = torch.cat([draw.take(3)[0] for _ in range(5)]).tolist()
    passes = [sorted(taken[start : start + 5]) for start in (0, 5, 10)]
    assert passes == [[0, 1, 2, 3, 4]] * 3


def test_draw_does_not_depend_on_the_size_of_its_sips_or_blocks(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    one = Draw(numbered(7), np.random.default_rng(3), CPU).take(20)[0]
    monkeypatch.setattr("prerank.ranking.rows.BLOCK_ROWS", 3)
    two = Draw(numbered(7), np.random.default_rng(3), CPU)
    assert one.tolist() == torch.cat([two.take(5)[0] for _ in range(4)]).tolist()


def test_a_draw_goes_on_from_its_state() -> None:
    one, two = (Draw(numbered(7), np.random.default_rng(3), CPU) for _ in range(2))
    for count in (2, 2, 3, 4):
        one.take(count)
    two.restore(*one.state())
    for count in (5, 9, 1):
        assert two.take(count)[0].tolist() == one.take(count)[0].tolist()
        assert two.take(count)[1].user.tolist() == one.take(count)[1].user.tolist()


def test_drawn_rows_are_those_of_their_numbers() -> None:
    draw = Draw(numbered(7), np.random.default_rng(3), CPU)
    for count in (3, 9, 1):
        index, rows = draw.take(count)
        assert len(rows) == count
        assert rows.user.tolist() == index.tolist()
        assert rows.item.tolist() == (10 * index).tolist()


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
