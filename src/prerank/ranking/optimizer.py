"""Adam on the rows that a step touches, for tables too large to update whole.

A step reads a few thousand rows of an id table of a million. Dense Adam would still read and
write all of the table, its gradient and both moments. Here the touched rows are gathered into a
small leaf tensor, the model reads that one, and only those rows and their moments are written
back. A row that is not touched keeps its moments, as in `torch.optim.SparseAdam`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prerank.group import Group
from prerank.ranking.config import TrainConfig

if TYPE_CHECKING:
    from prerank.ranking.model import PreRankerModel

LARGE_TABLE = 100_000  # rows above which dense Adam costs more than the rest of a step
SCAN_FROM = 64  # table rows an entry up to which scanning the table beats sorting
BETAS, EPSILON = (0.9, 0.999), 1e-8  # torch's defaults for Adam


class RowTable:
    """Tables of equal rows (an embedding, a bias) whose touched rows train alone.

    Args:
        weights: each (R, ...) float32, updated in place.
        learning_rate, weight_decay: of AdamW; decay too meets touched rows only.

    Attributes:
        rows: (N,) int64, the rows in focus.
        values: of each table, (N, ...) leaf that requires a gradient.
    """

    rows: Tensor
    values: list[Tensor]

    def __init__(
        self, weights: Sequence[Tensor], learning_rate: float, weight_decay: float
    ) -> None:
        self.weights = list(weights)
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        # Zeros cost no memory before they are written: rows never touched never do.
        self.moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in self.weights]
        self.steps = 0
        self._place = torch.zeros(
            len(self.weights[0]), dtype=torch.int32, device=self.weights[0].device
        )

    @torch.no_grad()
    def focus(self, index_M: Tensor) -> None:
        """Gather the distinct rows among ``index_M`` (M,), in ascending order.

        Never sorts M entries: few of them race for their rows, many are ticked off in a pass over
        one byte a row.
        """
        index_M = index_M.long()
        if SCAN_FROM * len(index_M) > len(self._place):
            ticked_R = torch.zeros(len(self._place), dtype=torch.bool, device=index_M.device)
            ticked_R[index_M] = True
            self.rows = ticked_R.nonzero().squeeze(1)
        else:
            count_M = torch.arange(len(index_M), dtype=torch.int32, device=index_M.device)
            self._place[index_M] = count_M
            won_M = self._place.index_select(0, index_M) == count_M
            self.rows = index_M[won_M].sort().values
        count_N = torch.arange(len(self.rows), dtype=torch.int32, device=index_M.device)
        self._place[self.rows] = count_N
        self.values = [w.detach().index_select(0, self.rows) for w in self.weights]
        for values in self.values:
            values.requires_grad_()

    def place(self, row_N: Tensor) -> Tensor:
        """Return (N,) int32: where each row stands in ``values``; all must be in focus."""
        return self._place.index_select(0, row_N)

    @torch.no_grad()
    def step(self) -> None:
        """Move the rows in focus against the gradients of ``values``."""
        self.steps += 1
        low, high = BETAS
        size = self.learning_rate / (1 - low**self.steps)
        root = math.sqrt(1 - high**self.steps)
        for weight, (mean, square), values in zip(
            self.weights, self.moments, self.values, strict=True
        ):
            if values.grad is None:
                continue
            mean_N = mean.index_select(0, self.rows).lerp_(values.grad, 1 - low)
            square_N = square.index_select(0, self.rows).mul_(high)
            square_N.addcmul_(values.grad, values.grad, value=1 - high)
            moved_N = values.detach().mul(1 - self.learning_rate * self.weight_decay)
            moved_N.addcdiv_(mean_N, (square_N.sqrt() / root).add_(EPSILON), value=-size)
            for table, rows in ((weight, moved_N), (mean, mean_N), (square, square_N)):
                table.index_copy_(0, self.rows, rows)


class WholeAdamW:
    """`torch.optim.AdamW`, its one fused kernel called without what surrounds it.

    Args:
        weights: to train.
        learning_rate, weight_decay: of AdamW.

    Attributes:
        moments: of each weight mean and mean square of its gradients, and how often it moved.
    """

    def __init__(
        self, weights: Sequence[Tensor], learning_rate: float, weight_decay: float
    ) -> None:
        self.weights = list(weights)
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self._small, self._kept = self.weights, list[Tensor]()
        # How often each weight moved, in one tensor: mostly the same ones move, by one addition.
        self._steps = torch.zeros(len(self.weights), device=self.weights[0].device)
        self._moved, self._one_more = list[int](), torch.zeros_like(self._steps)
        self.moments = [
            (torch.zeros_like(weight), torch.zeros_like(weight), steps)
            for weight, steps in zip(self.weights, self._steps.unbind(), strict=True)
        ]

    def keep(self, weight: Tensor) -> None:
        """Zero this weight's gradient between steps instead of dropping it: it is large."""
        weight.grad = torch.zeros_like(weight)
        self._kept.append(weight)
        self._small = [small for small in self._small if small is not weight]

    def forget(self) -> None:
        """Forget all gradients."""
        for weight in self._small:
            weight.grad = None
        for weight in self._kept:
            if weight.grad is not None:
                weight.grad.zero_()

    @torch.no_grad()
    def step(self) -> None:
        """Move the weights that have a gradient against it."""
        grads = [weight.grad for weight in self.weights if weight.grad is not None]
        moved = [place for place, weight in enumerate(self.weights) if weight.grad is not None]
        if moved != self._moved:
            self._moved, self._one_more = moved, torch.zeros_like(self._steps)
            self._one_more[moved] = 1
        self._steps += self._one_more
        means, squares, steps = zip(*(self.moments[place] for place in moved), strict=True)
        torch._fused_adamw_(
            [self.weights[place] for place in moved],
            grads,
            means,
            squares,
            [],
            steps,
            lr=self.learning_rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=self.weight_decay,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )


class Optimizer:
    """AdamW: dense for small parameters, by touched rows for large id tables.

    Args:
        model: whose inputs hold the id tables.
        more: further parameters to train.
        config: step size, decay, and which tables are large.
        group: whose processes add up the model's gradients. Those of ``more`` are whole in each,
            but for the numbers that dropout draws: their mean keeps ``more`` the same in all.
    """

    def __init__(
        self,
        model: PreRankerModel,
        more: Iterable[nn.Parameter],
        config: TrainConfig,
        group: Group,
    ) -> None:
        self.inputs, self.group = model.inputs, group
        settings = {"learning_rate": config.learning_rate, "weight_decay": config.weight_decay}
        self.users = self.items = None
        user_id, item_id = self.inputs.user_id, self.inputs.item_id
        if user_id is not None and is_large(user_id.embedding.weight, config):
            self.users = RowTable([_frozen(user_id.embedding.weight)], **settings)
        if item_id is not None and is_large(item_id.embedding.weight, config):
            tables = [item_id.embedding.weight, self.inputs.item_bias]
            self.items = RowTable([_frozen(table) for table in tables], **settings)
        self.shared = [weight for weight in model.parameters() if weight.requires_grad]
        self.more = list(more)
        self.dense = WholeAdamW([*self.shared, *self.more], **settings)
        tables = [ids.embedding.weight for ids in (user_id, item_id) if ids is not None]
        for table in (*tables, self.inputs.item_bias):
            if table.requires_grad:
                self.dense.keep(table)

    def reading(
        self, user_B: Tensor, item_B: Tensor, item_T: Tensor
    ) -> AbstractContextManager[None]:
        """Let the model read only the rows of large tables that this step's rows name.

        Args:
            user_B: users of the rows or of their states.
            item_B: (B,) items of the rows.
            item_T: (T,) items of their histories.
        """
        if self.users is None and self.items is None:
            return nullcontext()
        return self._focused(user_B, item_B, item_T)

    @contextmanager
    def _focused(self, user_B: Tensor, item_B: Tensor, item_T: Tensor) -> Iterator[None]:
        user_id, item_id = self.inputs.user_id, self.inputs.item_id
        if self.users is not None and user_id is not None:
            user_id.touch(self.users, [user_B])
        if self.items is not None and item_id is not None:
            item_id.touch(self.items, [item_B, item_T])
        try:
            yield
        finally:
            for ids in (user_id, item_id):
                if ids is not None:
                    ids.release()

    def step(self, loss: Tensor) -> None:
        """Descend ``loss``, a scalar computed while `reading`."""
        self.dense.forget()
        loss.backward()  # type: ignore[no-untyped-call]
        tables = [table for table in (self.users, self.items) if table is not None]
        values = [leaf for table in tables for leaf in table.values]
        self.group.add_gradients([*self.shared, *values])
        self.group.add_gradients(self.more, mean=True)
        self.dense.step()
        for table in tables:
            table.step()


def is_large(weight: Tensor, config: TrainConfig) -> bool:
    """Say whether a table trains by touched rows."""
    if config.row_updates == "auto":
        return len(weight) > LARGE_TABLE
    return config.row_updates == "always"


def _frozen(weight: Tensor) -> Tensor:
    return weight.requires_grad_(False)
