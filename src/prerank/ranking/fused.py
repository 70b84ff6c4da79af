"""Closed-form passes of what every training step does: look up, run a tower, meet.

A step on tables of a few thousand rows is many small operations, and their number is what it
costs. Each function here stands for several of them, with a backward pass written out, and equals
the plain one up to the order of float sums. Where nothing is differentiated, where a graph is
exported or compiled, and for what they do not cover, the plain operations run.

Letters: B rows, D and N columns, R table rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from prerank.ranking.pooling import States, added, spread

EPSILON = 1e-12  # the shortest vector that a cosine takes as it is; `functional.normalize`'s
ONEDNN_ROWS = 1024  # from which on its product is the faster one
# oneDNN's product; the operator that compiled graphs call too.
_ONEDNN = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
_POINTWISE = torch.ops.mkldnn._linear_pointwise.default if _ONEDNN else None


def _plain() -> bool:
    graph = torch.compiler.is_compiling() or torch.compiler.is_exporting()
    return graph or not torch.is_grad_enabled()


class _Lookup(torch.autograd.Function):
    """Rows of a leaf; the backward pass adds to its gradient in place.

    A dense gradient of its own a step would be allocated, zeroed and added up.
    """

    @staticmethod
    def forward(ctx: Any, table_RD: Tensor, row_B: Tensor) -> Tensor:
        ctx.table = table_RD
        ctx.save_for_backward(row_B)
        return table_RD.index_select(0, row_B)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        _add_rows(Looked(ctx.table, ctx.saved_tensors[0]), grads[0])
        return None, None


class Looked(NamedTuple):
    """Rows of a table that nobody has gathered yet: `towers` does, and without a step of a graph.

    Attributes:
        table: (R, D) or (R,).
        row: (B,) which rows.
    """

    table: Tensor
    row: Tensor


Field = Tensor | Looked


def _add_rows(looked: Looked, grad: Tensor) -> None:
    """Add ``grad`` (B, ...) to the gradient of rows of a leaf."""
    if looked.table.grad is None:
        looked.table.grad = torch.zeros_like(looked.table)
    looked.table.grad.index_add_(0, looked.row.long(), grad.contiguous())


def gathered(field: Field) -> Tensor:
    """Return a field's values, (B, D) or (B,)."""
    return table_rows(*field) if isinstance(field, Looked) else field


def _in_place(table: Tensor) -> bool:
    """Say whether a backward pass adds to this table's gradient itself."""
    # On CUDA sums of rows that repeat would come in any order, and bytes would differ.
    return not _plain() and table.is_leaf and table.requires_grad and not table.is_cuda


def table_rows(table_RD: Tensor, row_B: Tensor) -> Tensor:
    """Return the rows ``row_B`` (B,) of a table (R, D) or (R,): (B, D) or (B,)."""
    if not _in_place(table_RD):
        if table_RD.dim() == 1:
            return table_RD.index_select(0, row_B)
        return functional.embedding(row_B, table_RD)
    found: Tensor = _Lookup.apply(table_RD, row_B)  # type: ignore[no-untyped-call]
    return found


def product(
    values_BN: Tensor, matrix_MN: Tensor, bias_M: Tensor | None = None, *, relu: bool = False
) -> Tensor:
    """Return (B, M): ``values @ matrix.T + bias``, cut off below 0 where ``relu``; no graph."""
    # On many rows oneDNN is up to twice as fast as BLAS, bias and ReLU included. But each new
    # number of rows costs it half a millisecond, and user states are another in every step. Steps
    # mostly have a number of rows that divides by eight, states seldom do.
    many = len(values_BN) >= ONEDNN_ROWS and len(values_BN) % 8 == 0
    many &= values_BN.dtype == torch.float32 and not values_BN.is_cuda
    if _POINTWISE is not None and many:
        found: Tensor = _POINTWISE(values_BN, matrix_MN, bias_M, "relu" if relu else "none", [], "")
        return found
    found = values_BN @ matrix_MN.T
    if bias_M is not None:
        found.add_(bias_M)
    return found.relu_() if relu else found


def _run(values_BN: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return what linear layers with a ReLU between each two make of (B, N), and their inputs.

    Args:
        weights: matrix and bias of each layer, in turn.
    """
    inputs = [values_BN]
    for matrix, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        inputs.append(product(inputs[-1], matrix, bias, relu=True))
    return product(inputs[-1], weights[-2], weights[-1]), inputs


def _run_back(
    grad_BN: Tensor, matrices: Sequence[Tensor], inputs: Sequence[Tensor], *, input_learns: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """Return the gradients of what `_run` read: its values (if they learn) and its weights."""
    found: list[Tensor] = []
    for layer in reversed(range(len(matrices))):
        found += [grad_BN.sum(0), grad_BN.T @ inputs[layer]]
        if not layer:
            break
        passed_BN = product(grad_BN, matrices[layer].T)
        grad_BN = torch.ops.aten.threshold_backward.grad_input(
            passed_BN, inputs[layer], 0, grad_input=passed_BN
        )
    return product(grad_BN, matrices[0].T) if input_learns else None, found[::-1]


class _Mlp(torch.autograd.Function):
    """Linear layers with a ReLU between each two."""

    @staticmethod
    def forward(ctx: Any, values_BN: Tensor, *weights: Tensor) -> Tensor:
        found_BM, inputs = _run(values_BN, weights)
        ctx.save_for_backward(*weights[::2], *inputs)
        return found_BM

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved, n_layers = ctx.saved_tensors, len(ctx.saved_tensors) // 2
        learns = ctx.needs_input_grad[0]
        of_values, of_weights = _run_back(
            grads[0], saved[:n_layers], saved[n_layers:], input_learns=learns
        )
        return of_values, *of_weights


def _covered(layers: Iterable[nn.Module], values_BN: Tensor) -> list[Tensor] | None:
    """Return matrix and bias of each layer, or None where the layers must run as they are."""
    if _plain() or torch.is_autocast_enabled(values_BN.device.type):
        return None
    weights, linear = [], True  # is a linear layer next?
    for layer in layers:
        if isinstance(layer, nn.Dropout) and layer.p == 0:
            continue
        if type(layer) is not (nn.Linear if linear else nn.ReLU):
            return None
        if isinstance(layer, nn.Linear):
            if layer.bias is None:
                return None
            weights += [layer.weight, layer.bias]
        linear = not linear
    return None if linear else weights


def mlp(layers: nn.Sequential | nn.Linear, values_BN: Tensor) -> Tensor:
    """Return what ``layers`` make of (B, N), in one pass where they are linear, ReLU, linear.

    Dropout, other layers, and reduced precision run as they are.
    """
    weights = _covered([layers] if isinstance(layers, nn.Linear) else layers, values_BN)
    if weights is None:
        plain: Tensor = layers(values_BN)
        return plain
    found: Tensor = _Mlp.apply(values_BN, *weights)  # type: ignore[no-untyped-call]
    return found


def _meet(
    one_SD: Tensor, two_BD: Tensor, cosine: bool, states: States | None
) -> tuple[Tensor, ...]:
    """Return scores (B,), products (B, D), and what `_meet_back` reads: for cosines lengths too."""
    one_BD = spread(one_SD, states)
    product_BD = one_BD * two_BD
    score_B = product_BD.sum(1)
    if not cosine:
        return score_B, product_BD, one_BD, two_BD
    size_S, two_B = (
        torch.linalg.vector_norm(rows, dim=1).clamp_min_(EPSILON) for rows in (one_SD, two_BD)
    )
    # Rows are never brought to unit length: that would be two more tensors of (B, D).
    shrink_B = (spread(size_S, states) * two_B).reciprocal_()
    product_BD *= shrink_B[:, None]
    return score_B.mul_(shrink_B), product_BD, one_BD, two_BD, one_SD, size_S, two_B, shrink_B


def _meet_back(
    of_score: Tensor | None, of_product: Tensor | None, met: Sequence[Tensor], states: States | None
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the vectors that met, (S, D) and (B, D).

    Args:
        of_score, of_product: gradients of scores and products, not both None.
        met: what `_meet` returned.
        states: as given to `_meet`.
    """
    score_B, _, one_BD, two_BD, *more = met
    if of_product is None:
        assert of_score is not None
        grad = of_score[:, None]
    else:
        grad = of_product if of_score is None else of_product + of_score[:, None]
    if not more:
        ones, twos = grad * two_BD, grad * one_BD
        return ones if states is None else added(ones, states.offsets), twos
    one_SD, size_S, two_B, shrink_B = more
    # d cos / d one = two / (|one| |two|) - cos one / |one|^2, and so for the other.
    grad = grad * shrink_B[:, None]
    ones, twos = grad * two_BD, grad * one_BD
    if of_product is None and of_score is not None:
        along_B = of_score * score_B
    else:
        along_B = (ones * one_BD).sum(1)  # the same from either side
    along_S = along_B
    if states is not None:
        ones = added(ones, states.offsets)
        along_S = added(along_B[:, None], states.offsets)[:, 0]
    ones.addcmul_(one_SD, (along_S / size_S.square())[:, None], value=-1)
    twos.addcmul_(two_BD, (along_B / two_B.square())[:, None], value=-1)
    return ones, twos


class _Meeting(torch.autograd.Function):
    """Dot product or cosine of rows, and the products behind each."""

    @staticmethod
    def forward(ctx: Any, one_BD: Tensor, two_BD: Tensor, cosine: bool) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        met = _meet(one_BD, two_BD, cosine, None)
        ctx.save_for_backward(*met)
        return met[0], met[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        of_score, of_product = grads
        if of_score is None and of_product is None:
            return None, None, None
        return *_meet_back(of_score, of_product, ctx.saved_tensors, None), None


def meeting(one_BD: Tensor, two_BD: Tensor, *, cosine: bool) -> tuple[Tensor, Tensor]:
    """Return how rows meet: (B,) dot products or cosines, and the (B, D) products they sum up.

    Args:
        one_BD, two_BD: (B, D) vectors, normalised here where ``cosine``.
        cosine: shorten both to unit length first.
    """
    if not _plain():
        one_BD, two_BD = one_BD.float(), two_BD.float()
        found: tuple[Tensor, Tensor] = _Meeting.apply(one_BD, two_BD, cosine)  # type: ignore[no-untyped-call]
        return found
    if cosine:
        one_BD, two_BD = (functional.normalize(rows, dim=1) for rows in (one_BD, two_BD))
    product_BD = one_BD * two_BD
    return product_BD.sum(1), product_BD


class _Plan(NamedTuple):
    """What `_Towers` does beside its tensors.

    Attributes:
        cosine, temperature: how vectors meet.
        one, two: of each field of a tower its columns, and the table that it comes from or None.
        bias: further bias of each row, None for none.
        states: of the rows of the first tower, None where each row of it has its own.
    """

    cosine: bool
    temperature: float
    one: list[tuple[int, Looked | None]]
    two: list[tuple[int, Looked | None]]
    bias: Looked | None
    states: States | None


class _Towers(torch.autograd.Function):
    """Two towers of as many layers each, what they read, and how their vectors meet.

    The tensors: the fields that come from no table, the bias of all, and the weights.
    """

    @staticmethod
    def forward(ctx: Any, plan: _Plan, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        given = iter(tensors)
        read = [
            joined(
                [next(given) if of is None else of.table.index_select(0, of.row) for _, of in side]
            )
            for side in (plan.one, plan.two)
        ]
        bias, weights = next(given), list(given)
        half = len(weights) // 2
        one_SD, ones = _run(read[0], weights[:half])
        two_BD, twos = _run(read[1], weights[half:])
        met = _meet(one_SD, two_BD, plan.cosine, plan.states)
        ctx.save_for_backward(*weights[::2], *ones, *twos, *met)
        ctx.plan, ctx.n_layers = plan, half // 2
        score_B, product_BD = met[0], met[1]
        if plan.temperature != 1:
            score_B, product_BD = score_B / plan.temperature, product_BD / plan.temperature
        score_B = score_B + bias  # not in place: the backward pass reads what met
        if plan.bias is not None:
            score_B += plan.bias.table.index_select(0, plan.bias.row)
        return score_B, product_BD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, n, plan, learns = ctx.saved_tensors, ctx.n_layers, ctx.plan, ctx.needs_input_grad
        of_score, of_product = grads
        if of_score is None and of_product is None:
            return (None,) * len(learns)
        of_bias = None if of_score is None else of_score.sum()
        if plan.bias is not None and of_score is not None:
            _add_rows(plan.bias, of_score)
        if plan.temperature != 1:
            of_score, of_product = (of if of is None else of / plan.temperature for of in grads)
        vectors = _meet_back(of_score, of_product, saved[4 * n :], plan.states)
        found: list[Tensor | None] = [None]
        of_weights: list[Tensor] = []
        for number, side in enumerate((plan.one, plan.two)):
            matrices = saved[number * n : (number + 1) * n]
            inputs = saved[(2 + number) * n : (3 + number) * n]
            n_given = sum(of is None for _, of in side)
            wanted = n_given < len(side) or any(learns[len(found) : len(found) + n_given])
            of_read, of_layers = _run_back(vectors[number], matrices, inputs, input_learns=wanted)
            of_weights += of_layers
            start = 0
            for width, of in side:
                part = None if of_read is None else of_read[:, start : start + width]
                start += width
                if of is None:
                    found.append(part)
                elif part is not None:
                    _add_rows(of, part)
        return *found, of_bias, *of_weights


def towers(
    one: nn.Sequential,
    two: nn.Sequential,
    reads_one: Sequence[Field],
    reads_two: Sequence[Field],
    bias: Tensor,
    item_bias: Looked | None,
    *,
    states: States | None = None,
    cosine: bool,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Return how two towers meet, (B,) with biases, and the (B, D) products; in one pass if it can.

    Args:
        one, two: the towers.
        reads_one: the fields (S, ...) that the first reads, a row a state.
        reads_two: the fields (B, ...) that the second reads.
        bias: scalar, added to every row.
        item_bias: added to each row, None for none.
        states: of the B rows; None where S = B.
        cosine: as in `meeting`.
        temperature: what the score and the products are divided by.
    """
    first, second = _covered(one, bias), _covered(two, bias)
    looked = [of for of in (*reads_one, *reads_two, item_bias) if isinstance(of, Looked)]
    in_place = all(_in_place(of.table) for of in looked)
    if first is None or second is None or len(first) != len(second) or not in_place:
        one_BD = spread(mlp(one, joined(reads_one)), states)
        two_BD = mlp(two, joined(reads_two))
        met_B, product_BD = meeting(one_BD, two_BD, cosine=cosine)
        bias_B = bias if item_bias is None else bias + gathered(item_bias)
        return met_B / temperature + bias_B, product_BD / temperature
    plan = _Plan(cosine, temperature, _places(reads_one), _places(reads_two), item_bias, states)
    given = [field for field in (*reads_one, *reads_two) if isinstance(field, Tensor)]
    found: tuple[Tensor, Tensor] = _Towers.apply(plan, *given, bias, *first, *second)  # type: ignore[no-untyped-call]
    return found


def _places(fields: Sequence[Field]) -> list[tuple[int, Looked | None]]:
    return [
        (field.table.shape[1], field) if isinstance(field, Looked) else (field.shape[1], None)
        for field in fields
    ]


def joined(fields: Sequence[Field]) -> Tensor:
    """Return the fields (B, ...) of a row side by side; one alone is not copied."""
    values = [gathered(field) for field in fields]
    return values[0] if len(values) == 1 else torch.cat(values, dim=1)
