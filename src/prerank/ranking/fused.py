"""Closed-form passes of what every training step does: look up, run a tower, meet.

A step on tables of a few thousand rows is many small operations, and their number is what it
costs. Each function here stands for several of them, with a backward pass written out, and equals
the plain one up to the order of float sums. Where nothing is differentiated, where a graph is
exported or compiled, and for what they do not cover, the plain operations run.

Letters: B rows, D and N columns, R table rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-12  # the shortest vector that a cosine takes as it is; `functional.normalize`'s


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
        (row_B,), table = ctx.saved_tensors, ctx.table
        if table.grad is None:
            table.grad = torch.zeros_like(table)
        place = row_B.long()
        if grads[0].dim() > 1:
            place = place[:, None].expand_as(grads[0])
        table.grad.scatter_add_(0, place, grads[0])
        return None, None


def lookup(table_RD: Tensor, row_B: Tensor) -> Tensor:
    """Return the rows ``row_B`` (B,) of a table (R, D) or (R,): (B, D) or (B,)."""
    # On CUDA sums of rows that repeat would come in any order, and bytes would differ.
    if _plain() or not (table_RD.is_leaf and table_RD.requires_grad) or table_RD.is_cuda:
        if table_RD.dim() == 1:
            return table_RD.index_select(0, row_B)
        return functional.embedding(row_B, table_RD)
    found: Tensor = _Lookup.apply(table_RD, row_B)  # type: ignore[no-untyped-call]
    return found


class _Mlp(torch.autograd.Function):
    """Linear layers with a ReLU between each two."""

    @staticmethod
    def forward(ctx: Any, values_BN: Tensor, *weights: Tensor) -> Tensor:
        inputs = [values_BN]
        for matrix, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            inputs.append((inputs[-1] @ matrix.T).add_(bias).relu_())
        ctx.save_for_backward(*weights[::2], *inputs)
        return (inputs[-1] @ weights[-2].T).add_(weights[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        n_layers = len(ctx.saved_tensors) // 2
        matrices, inputs = ctx.saved_tensors[:n_layers], ctx.saved_tensors[n_layers:]
        found: list[Tensor | None] = []
        grad_BN: Tensor | None = grads[0]
        for layer in reversed(range(n_layers)):
            assert grad_BN is not None
            found += [grad_BN.sum(0), grad_BN.T @ inputs[layer]]
            if layer:
                passed_BN = grad_BN @ matrices[layer]
                grad_BN = torch.ops.aten.threshold_backward.grad_input(
                    passed_BN, inputs[layer], 0, grad_input=passed_BN
                )
            else:
                grad_BN = grad_BN @ matrices[0] if ctx.needs_input_grad[0] else None
        return grad_BN, *reversed(found)


def mlp(layers: nn.Sequential, values_BN: Tensor) -> Tensor:
    """Return what ``layers`` make of (B, N), in one pass where they are linear, ReLU, linear.

    Dropout, other layers, and reduced precision run as they are.
    """
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    active = [layer for layer in layers if not (isinstance(layer, nn.Dropout) and layer.p == 0)]
    kinds = [type(layer) for layer in active]
    covered = kinds == ([nn.Linear, nn.ReLU] * len(linear))[:-1]
    reduced = torch.is_autocast_enabled(values_BN.device.type)
    if _plain() or not covered or reduced or any(layer.bias is None for layer in linear):
        plain: Tensor = layers(values_BN)
        return plain
    weights = [weight for layer in linear for weight in (layer.weight, layer.bias)]
    found: Tensor = _Mlp.apply(values_BN, *weights)  # type: ignore[no-untyped-call]
    return found


class _Meeting(torch.autograd.Function):
    """Dot product or cosine of rows, and the products behind each."""

    @staticmethod
    def forward(ctx: Any, one_BD: Tensor, two_BD: Tensor, cosine: bool) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        sizes: tuple[Tensor, ...] = ()
        if cosine:
            sizes = tuple(
                torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(EPSILON)
                for rows in (one_BD, two_BD)
            )
            one_BD, two_BD = one_BD / sizes[0], two_BD / sizes[1]
        product_BD = one_BD * two_BD
        score_B = product_BD.sum(1)
        ctx.save_for_backward(one_BD, two_BD, score_B, *sizes)
        return score_B, product_BD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        one_BD, two_BD, score_B, *sizes = ctx.saved_tensors
        of_score, of_product = grads
        if of_score is None and of_product is None:
            return None, None, None
        if of_product is None:
            assert of_score is not None
            grad, along = of_score[:, None], score_B[:, None]
            if not sizes:
                return grad * two_BD, grad * one_BD, None
            ones = torch.addcmul(two_BD, one_BD, along, value=-1).mul_(grad / sizes[0])
            twos = torch.addcmul(one_BD, two_BD, along, value=-1).mul_(grad / sizes[1])
            return ones, twos, None
        grad = of_product if of_score is None else of_product + of_score[:, None]
        ones, twos = grad * two_BD, grad * one_BD
        if sizes:
            ones = torch.addcmul(ones, one_BD, (ones * one_BD).sum(1, True), value=-1) / sizes[0]
            twos = torch.addcmul(twos, two_BD, (twos * two_BD).sum(1, True), value=-1) / sizes[1]
        return ones, twos, None


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


def joined(fields: list[Tensor]) -> Tensor:
    """Return the fields (B, ...) of a row side by side; one alone is not copied."""
    return fields[0] if len(fields) == 1 else torch.cat(fields, dim=1)
