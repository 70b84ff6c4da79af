"""Training by several processes: each runs the model on its share of every batch.

All processes draw the same global batch. Each computes the logits of its rows, takes the others'
logits from them, and computes the same loss over all rows; so any objective over logits works
unchanged. Gradients reach a process's own rows only, and are then added up. The loss curve is that
of one process, up to the order of float sums; layer dropout alone draws other numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Group:
    """This process among those that train together; one process is a group of its own."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Group:
        """Return the group that torchrun started and `torch.distributed` joined, if any."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    def share(self, n_rows: int, device: torch.device) -> Tensor:
        """Return the rows (int64) of a batch of ``n_rows`` that this process computes."""
        return torch.arange(*self._bounds(self.rank, n_rows), device=device)

    def _bounds(self, rank: int, n_rows: int) -> tuple[int, int]:
        """Return where a process's rows begin and end: neighbours may have a user in common."""
        return rank * n_rows // self.size, (rank + 1) * n_rows // self.size

    def gathered(self, own: Tensor, n_rows: int) -> Tensor:
        """Return (n_rows, ...): every process's values in the order of the batch.

        Args:
            own: (share, ...) of this process; gradients reach these alone.
            n_rows: rows of the batch.
        """
        if self.size == 1:
            return own
        most = -(-n_rows // self.size)
        padded = own.detach().new_zeros(most, *own.shape[1:])
        padded[: len(own)] = own.detach()
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        distributed.all_gather(parts, padded)
        bounds = [self._bounds(rank, n_rows) for rank in range(self.size)]
        every = [part[: stop - start] for part, (start, stop) in zip(parts, bounds, strict=True)]
        every[self.rank] = own
        return torch.cat(every)

    def sum(self, value: float) -> float:
        """Return the sum of every process's ``value``."""
        if self.size == 1:
            return value
        on_gpu = distributed.get_backend() == "nccl"
        total = torch.tensor(value, dtype=torch.float64, device="cuda" if on_gpu else "cpu")
        distributed.all_reduce(total)
        return float(total)

    def add_gradients(self, weights: Iterable[Tensor], *, mean: bool = False) -> None:
        """Replace the gradients of ``weights`` by their sums over all processes, or their means."""
        every = list(weights)
        if self.size == 1 or not every:
            return
        for weight in every:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        flat = torch.cat([weight.grad.flatten() for weight in every if weight.grad is not None])
        distributed.all_reduce(flat)
        flat = flat / self.size if mean else flat
        parts = torch.split(flat, [weight.numel() for weight in every])
        for weight, part in zip(every, parts, strict=True):
            weight.grad = part.view_as(weight)
