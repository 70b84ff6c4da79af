import torch
from hypothesis import given
from hypothesis import strategies as st

from prerank.ranking.pooling import States, ragged_mean, spread, spread_histories


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


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 9))
def test_spread_values_and_their_gradient_equal_an_index(sizes: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    size_S = torch.tensor(sizes)
    of_row = torch.arange(len(sizes)).repeat_interleave(size_S)
    states = States(of_row, torch.cat([size_S.new_zeros(1), size_S.cumsum(0)]))
    values = torch.randn(len(sizes), 2, 3, requires_grad=True)
    upstream = torch.randn(len(of_row), 2, 3)
    found = spread(values, states)
    found.backward(upstream)
    plain = values.detach().clone().requires_grad_()
    plain[of_row].backward(upstream)
    torch.testing.assert_close(found, plain[of_row])
    torch.testing.assert_close(values.grad, plain.grad)
    assert spread(values, None) is values


def test_states_of_some_rows_and_of_two_steps() -> None:
    states = States(torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 2, 3, 5]))
    own, which = states.of_rows(torch.tensor([1, 3, 4]))
    assert own.of_row.tolist() == [0, 1, 1]
    assert own.offsets.tolist() == [0, 1, 3]
    assert which.tolist() == [0, 2]
    both = states.followed(own)
    assert both.of_row.tolist() == [0, 0, 1, 2, 2, 3, 4, 4]
    assert both.offsets.tolist() == [0, 2, 3, 5, 6, 8]


def test_spread_histories_repeat_those_of_the_states() -> None:
    item, offsets = torch.tensor([7, 8, 9]).int(), torch.tensor([0, 2, 2, 3]).int()
    states = States(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 2, 3, 4]))
    items, borders = spread_histories(item, offsets, states)
    assert items.tolist() == [7, 8, 7, 8, 9]
    assert borders.tolist() == [0, 2, 4, 4, 5]
