"""Adam on touched rows against torch's own."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from prerank.ranking.optimizer import RowTable
from prerank.ranking.pre_ranker import PreRanker
from prerank.ranking.train import train
from ranking.worlds import make_config, make_content, make_labels, make_world


def steps_of(n_steps: int, n_rows: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the rows of each step, with repeats, and what each is multiplied with."""
    rng = torch.Generator().manual_seed(seed)
    return [
        (torch.randint(0, n_rows, (6,), generator=rng), torch.randn(6, 3, generator=rng))
        for _ in range(n_steps)
    ]


def trained(weight: torch.Tensor, steps: list, decay: float = 0.0) -> torch.Tensor:  # type: ignore[type-arg]
    table = RowTable([weight], 0.1, decay)
    for index, factor in steps:
        table.focus(index)
        rows = functional.embedding(table.place(index), table.values[0])
        (rows.tanh() * factor).sum().backward()
        table.step()
    return table.weights[0]


@pytest.mark.parametrize("n_rows", [9, 1000])
def test_equals_sparse_adam(n_rows: int) -> None:
    weight = torch.randn(n_rows, 3, generator=torch.Generator().manual_seed(1))
    steps = steps_of(12, n_rows)
    theirs = torch.nn.Parameter(weight.clone())
    optimizer = torch.optim.SparseAdam([theirs], lr=0.1)
    for index, factor in steps:
        optimizer.zero_grad()
        (functional.embedding(index, theirs, sparse=True).tanh() * factor).sum().backward()
        optimizer.step()
    torch.testing.assert_close(trained(weight.clone(), steps), theirs.detach())


def test_equals_dense_adamw_where_every_step_touches_every_row() -> None:
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    steps = [(torch.tensor([3, 0, 2, 1, 0, 0]), factor) for _, factor in steps_of(9, 4)]
    theirs = torch.nn.Parameter(weight.clone())
    optimizer = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.3)
    for index, factor in steps:
        optimizer.zero_grad()
        (theirs[index].tanh() * factor).sum().backward()
        optimizer.step()
    torch.testing.assert_close(trained(weight.clone(), steps, decay=0.3), theirs.detach())


@given(st.lists(st.integers(0, 700), min_size=1, max_size=30))
def test_focus_is_the_set_of_rows(index: list[int]) -> None:
    weight = torch.arange(701.0)[:, None].repeat(1, 2)
    table = RowTable([weight, weight[:, 0].clone()], 0.1, 0.0)
    entries = torch.tensor(index)
    table.focus(entries)
    assert table.rows.tolist() == sorted(set(index))
    for values in table.values:
        assert values[table.place(entries).long()].view(len(index), -1)[:, 0].tolist() == index


def test_rows_that_no_step_touches_stay_as_they_are() -> None:
    weight = torch.randn(50, 3)
    steps = [(index % 10, factor) for index, factor in steps_of(5, 50)]
    moved = trained(weight.clone(), steps)
    assert torch.equal(moved[10:], weight[10:])
    assert (moved[:10] != weight[:10]).any()


def pair(**more: object) -> tuple[PreRanker, PreRanker]:
    found = []
    for updates in ("never", "always"):
        config = make_config().model_copy(update={"row_updates": updates, **more})
        found.append(train(make_world(), make_content(), make_labels(0.2), config, seed=0))
    return found[0], found[1]


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_training_by_rows_equals_dense_training_where_all_rows_are_touched(pooling: str) -> None:
    """One batch holds all rows, so that each step touches every id that trains at all."""
    whole = {"batch_size": 5000, "min_id_rows": 0, "epochs": 4, "sequence_pooling": pooling}
    dense, rows = pair(**whole)
    for name, weight in dense.model.state_dict().items():
        torch.testing.assert_close(rows.model.state_dict()[name], weight, rtol=1e-4, atol=1e-5)
    pools = make_world().pools
    np.testing.assert_allclose(rows.score_pools(pools), dense.score_pools(pools), atol=1e-4)


def test_training_by_rows_learns_like_dense_training() -> None:
    dense, rows = pair(epochs=8)
    assert rows.history[-1]["loss_al"] == pytest.approx(dense.history[-1]["loss_al"], abs=0.03)
    pools = make_world().pools
    assert np.corrcoef(dense.score_pools(pools), rows.score_pools(pools))[0, 1] > 0.95
