"""The written-out passes against torch's own operations."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prerank.ranking import fused
from prerank.ranking.fused import Looked, joined, meeting, mlp, table_rows, towers
from prerank.ranking.optimizer import WholeAdamW


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(5, 3), (5,)])
def test_a_lookup_adds_up_the_gradients_of_rows_that_repeat(shape: tuple[int, ...]) -> None:
    table = torch.zeros(shape, requires_grad=True)
    row_B = torch.tensor([4, 1, 4], dtype=torch.int32)
    for scale in (1.0, 10.0):
        (table_rows(table, row_B) * scale).sum().backward()
    assert table.grad is not None
    assert table.grad.reshape(5, -1)[:, 0].tolist() == [0, 11, 0, 0, 22]


@pytest.mark.parametrize("hidden", [(), (4,), (4, 6)])
@pytest.mark.parametrize("input_learns", [True, False])
def test_a_tower_and_its_gradients_equal_the_layers(
    hidden: tuple[int, ...], input_learns: bool
) -> None:
    sizes, layers = (3, *hidden, 2), []
    for m, n in pairwise(sizes):
        layers += [nn.Linear(m, n), nn.ReLU(), nn.Dropout(0.0)]
    tower = nn.Sequential(*layers[:-2]).double()
    found = []
    values_BN = draw(7, 3).requires_grad_(input_learns)
    for run in (mlp, lambda layers, values: layers(values)):
        values_BN.grad = None
        tower.zero_grad()
        out_BN = run(tower, values_BN)
        out_BN.square().sum().backward()
        found.append([out_BN, values_BN.grad, *(weight.grad for weight in tower.parameters())])
    assert (found[0][1] is None) == (not input_learns)
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)


def test_many_rows_in_single_precision_equal_the_layers() -> None:
    tower = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    values_BN = torch.randn(fused.ONEDNN_ROWS, 8, requires_grad=True)
    found = []
    for run in (mlp, lambda layers, values: layers(values)):
        values_BN.grad = None
        out_BN = run(tower, values_BN)
        out_BN.square().sum().backward()
        found.append((out_BN, values_BN.grad))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)


def test_what_is_not_covered_runs_as_it_is() -> None:
    values_BN = draw(4, 3)
    odd = nn.Sequential(nn.Linear(3, 2), nn.Tanh()).double()
    torch.testing.assert_close(mlp(odd, values_BN), odd(values_BN))
    dropped = nn.Sequential(nn.Linear(3, 400), nn.ReLU(), nn.Dropout(0.5), nn.Linear(400, 2))
    dropped.double()
    assert not torch.equal(mlp(dropped, values_BN), mlp(dropped, values_BN))


def plain(one: Tensor, two: Tensor, cosine: bool) -> tuple[Tensor, Tensor]:
    if cosine:
        one, two = functional.normalize(one, dim=1), functional.normalize(two, dim=1)
    return (one * two).sum(1), one * two


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("used", ["score", "products", "both"])
def test_a_meeting_and_its_gradients_equal_the_operations(cosine: bool, used: str) -> None:
    rows = torch.randn(2, 6, 4)
    rows[0, 0] = 0  # a vector without length
    factor_B, factor_BD = torch.randn(6), torch.randn(6, 4)
    found = []
    for meet in (lambda a, b: meeting(a, b, cosine=cosine), lambda a, b: plain(a, b, cosine)):
        one, two = (part.clone().requires_grad_() for part in rows)
        score_B, product_BD = meet(one, two)
        loss = torch.zeros(())
        if used != "products":
            loss = loss + (score_B[1:] * factor_B[1:]).sum()
        if used != "score":
            loss = loss + (product_BD[1:] * factor_BD[1:]).sum()
        loss.backward()
        found.append((score_B, product_BD, one.grad, two.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("onednn", [True, False])
def test_a_product_equals_the_operations(
    relu: bool, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not onednn:  # as on machines without it
        monkeypatch.setattr(fused, "_POINTWISE", None)
    values_BN, matrix_MN, bias_M = torch.randn(6, 4), torch.randn(3, 4), torch.randn(3)
    plain_BM = values_BN @ matrix_MN.T + bias_M
    found_BM = fused.product(values_BN, matrix_MN, bias_M, relu=relu)
    torch.testing.assert_close(found_BM, plain_BM.relu() if relu else plain_BM)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("used", ["score", "products", "both"])
def test_towers_and_all_their_gradients_equal_the_operations(
    temperature: float, cosine: bool, used: str
) -> None:
    """One tower reads rows of a table, a field that learns and one that does not; one a table."""
    one = nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 4))
    two = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4))
    tables = [torch.randn(shape, requires_grad=True) for shape in ((6, 4), (5, 3), (5,))]
    learned_BN, fixed_BN = torch.randn(7, 3, requires_grad=True), torch.randn(7, 2)
    bias = torch.tensor(0.3, requires_grad=True)
    rows = [torch.randint(0, 5, (7,), dtype=torch.int32) for _ in range(2)]
    factor_B, factor_BD = torch.randn(7), torch.randn(7, 4)
    learn = [*tables, learned_BN, bias, *one.parameters(), *two.parameters()]

    def passed() -> tuple[Tensor, Tensor]:
        first, second, of_item = (
            Looked(table, row)
            for table, row in zip(tables, (rows[0], rows[1], rows[1]), strict=True)
        )
        how = {"cosine": cosine, "temperature": temperature}
        return towers(one, two, [first, learned_BN, fixed_BN], [second], bias, of_item, **how)

    def by_operations() -> tuple[Tensor, Tensor]:
        read = torch.cat([tables[0][rows[0].long()], learned_BN, fixed_BN], 1)
        met_B, product_BD = plain(one(read), two(tables[1][rows[1].long()]), cosine)
        return met_B / temperature + bias + tables[2][rows[1].long()], product_BD / temperature

    found = []
    for run in (passed, by_operations):
        for weight in learn:
            weight.grad = None
        score_B, product_BD = run()
        loss = torch.zeros(())
        if used != "products":
            loss = loss + (score_B * factor_B).sum()
        if used != "score":
            loss = loss + (product_BD * factor_BD).sum()
        loss.backward()
        grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in learn]
        found.append([score_B, product_BD, *grads])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_what_no_pass_covers_meets_by_operations() -> None:
    one, two = nn.Sequential(nn.Linear(3, 2), nn.Tanh()), nn.Sequential(nn.Linear(3, 2))
    fields_BN, bias = [torch.randn(4, 3), torch.randn(4, 3)], torch.tensor(0.5)
    score_B, _ = towers(
        one, two, fields_BN[:1], fields_BN[1:], bias, None, cosine=False, temperature=2.0
    )
    expected_B = (one(fields_BN[0]) * two(fields_BN[1])).sum(1) / 2 + 0.5
    torch.testing.assert_close(score_B, expected_B)


def test_fields_stand_side_by_side() -> None:
    looked = Looked(torch.arange(6.0).view(3, 2), torch.tensor([2, 0]))
    assert joined([looked, torch.ones(2, 1)]).tolist() == [[4, 5, 1], [0, 1, 1]]


def test_whole_adamw_equals_torchs() -> None:
    weights = [[torch.ones(3, 2, requires_grad=True), torch.ones(4, requires_grad=True)]] * 2
    weights = [[w.detach().clone().requires_grad_() for w in part] for part in weights]
    ours = WholeAdamW(weights[0], learning_rate=0.1, weight_decay=0.3)
    ours.keep(weights[0][0])
    theirs = torch.optim.AdamW(weights[1], lr=0.1, weight_decay=0.3)
    for step in range(5):
        factor = torch.randn(3, 2)
        for optimizer, (first, second) in ((ours, weights[0]), (theirs, weights[1])):
            if isinstance(optimizer, WholeAdamW):
                optimizer.forget()
            else:
                optimizer.zero_grad()
            loss = (first.tanh() * factor).sum()
            if step != 2:  # a weight that a step does not read stays as it is
                loss = loss + second.square().sum()
            loss.backward()
            optimizer.step()
    for one, two in zip(*weights, strict=True):
        torch.testing.assert_close(one, two)
