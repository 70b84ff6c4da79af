import torch
from hypothesis import given
from hypothesis import strategies as st

from prerank.ranking.pooling import ragged_mean


def test_by_hand() -> None:
    table = torch.tensor([[1.0, 0.0], [3.0, 2.0], [9.0, 9.0]])
    item, offsets = torch.tensor([0, 1, 1]).int(), torch.tensor([0, 2, 2, 3]).int()
    mean = ragged_mean(table, item, offsets)
    assert mean.tolist() == [[2.0, 1.0], [0.0, 0.0], [3.0, 2.0]]


@given(st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=1, max_size=6), st.integers(0, 9))
def test_value_and_gradient_equal_a_loop(histories: list[list[int]], seed: int) -> None:
    torch.manual_seed(seed)
    table = torch.randn(5, 3, requires_grad=True)
    upstream = torch.randn(len(histories), 3)
    lengths = torch.tensor([0] + [len(h) for h in histories])
    flat = torch.tensor([i for h in histories for i in h]).int()
    mean = ragged_mean(table, flat, lengths.cumsum(0).int())
    mean.backward(upstream)
    plain = table.detach().clone().requires_grad_()
    expected = torch.stack([plain[h].mean(0) if h else torch.zeros(3) for h in histories])
    (expected + 0 * plain.sum()).backward(upstream)  # a gradient even where all are empty
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(table.grad, plain.grad)


def test_the_gradient_of_a_table_whose_pairs_need_64_bits() -> None:
    n_rows, n_histories = 1 << 20, 1 << 12
    table = torch.zeros(n_rows, 1, requires_grad=True)
    offsets = torch.full((n_histories + 1,), 3, dtype=torch.int32)
    offsets[:2] = torch.tensor([0, 2])
    item = torch.tensor([n_rows - 1, 4, n_rows - 1], dtype=torch.int32)
    ragged_mean(table, item, offsets).sum().backward()
    assert table.grad is not None
    assert table.grad.nonzero()[:, 0].tolist() == [4, n_rows - 1]
    assert table.grad[[4, n_rows - 1], 0].tolist() == [0.5, 1.5]


def test_a_frozen_table_gets_no_gradient() -> None:
    table = torch.ones(2, 2)
    mean = ragged_mean(table, torch.tensor([1]).int(), torch.tensor([0, 1]).int())
    assert not mean.requires_grad
