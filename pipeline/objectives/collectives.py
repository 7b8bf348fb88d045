"""Exact losses over rows that are spread over ranks, in any numbers, zero included.

The convention of all objectives: every rank returns a value whose *mean* over ranks is the loss of the global batch,
and *averaging* gradients over ranks (what DeepSpeed does) gives that loss's gradient. So what a rank returns is the
sum over its own rows, times W / N.

A loss is a scalar, so its gradients are known, up to one factor, as soon as its value is. All of them are computed in
the forward pass, collectives included, and kept (one row a row); the backward pass only multiplies. Therefore no
collective ever runs inside the backward pass, where it could fall out of order with DeepSpeed's own, no logits are
kept, and a rank without rows takes part in everything.

Shape letters: W ranks, n rows of this rank, N rows of all ranks, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx

Group: TypeAlias = (
    dist.ProcessGroup | None
)  # None: all ranks, or this process alone where torch.distributed is not initialised


def world_size(group: Group = None) -> int:
    """Number of ranks of ``group``; 1 without torch.distributed."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def rank_in(group: Group = None) -> int:
    """This process's number within ``group``."""
    return dist.get_rank(group) if world_size(group) > 1 else 0


def sum_over_ranks(values: Tensor, group: Group = None) -> Tensor:
    """A new tensor: ``values`` added up over the ranks. Without gradient."""
    total = values.detach().clone()
    if world_size(group) > 1:
        dist.all_reduce(total, group=group)
    return total


def gather_numbers(own: Sequence[int], group: Group = None) -> tuple[tuple[int, ...], ...]:
    """The same few numbers of every rank, by rank, on the host: a collective, the only one that a step must wait for.

    ``group``: one of a backend on CPUs (gloo); then the device goes on computing meanwhile.
    """
    size = world_size(group)
    if size == 1:
        return (tuple(own),)
    on_gpu = dist.get_backend(group) == "nccl"
    mine = torch.tensor(own, dtype=torch.int64, device="cuda" if on_gpu else "cpu")
    everyone = mine.new_empty(size * len(own))
    _all_gather(everyone, mine, group)
    return tuple(tuple(numbers) for numbers in everyone.view(size, -1).tolist())


def _all_gather(everyone: Tensor, own: Tensor, group: Group) -> None:
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the name before torch 2.13
    gather(everyone, own, group=group)


def _reduce_scatter(own: Tensor, everyone: Tensor, group: Group) -> None:
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor  # the name before torch 2.13
    scatter(own, everyone, group=group)


@dataclass(frozen=True)
class Rows:
    """How many rows each rank holds; rank 0's come first in the global order.

    With ``pooled`` False every rank sees its own rows only, yet knows the number of all of them.
    """

    counts: tuple[int, ...]
    rank: int
    group: Group = None
    pooled: bool = True

    @classmethod
    def of(cls, count: int, group: Group = None, scope: str = "all_ranks") -> Rows:
        """Count the rows of all ranks: a collective, whatever the scope (``all_ranks`` or ``local_rank``)."""
        return cls.known([numbers[0] for numbers in gather_numbers([count], group)], group, scope)

    @classmethod
    def known(cls, counts: Sequence[int], group: Group = None, scope: str = "all_ranks") -> Rows:
        """The rows of all ranks, whose numbers are known. No collective."""
        if scope not in ("all_ranks", "local_rank"):
            raise ValueError(f"scope is {scope!r}; it must be all_ranks or local_rank")
        if len(counts) == 1:
            return cls(tuple(counts), 0)
        return cls(tuple(counts), rank_in(group), group, scope == "all_ranks")

    def local(self, scope: str) -> Rows:
        """The same rows, seen by every rank (``all_ranks``) or each by its own only (``local_rank``)."""
        return Rows.known(self.counts, self.group, scope)

    @property
    def total(self) -> int:
        """N, whatever the scope."""
        return sum(self.counts)

    @property
    def share(self) -> float:
        """W / N, the factor of this rank's sum; 0 where no rank has a row."""
        return len(self.counts) / self.total if self.total else 0.0

    @property
    def own(self) -> slice:
        """Where this rank's rows lie among the rows that it sees."""
        start = sum(self.counts[: self.rank]) if self.pooled else 0
        return slice(start, start + self.counts[self.rank])

    def gather(self, rows: Tensor) -> Tensor:
        """[n, …] → [N, …], the rows of all ranks ([n, …] unless pooled). Without gradient."""
        rows = rows.detach()
        if self._alone:
            return rows
        longest = max(self.counts)
        padded = rows.contiguous()
        if len(rows) < longest:
            padded = rows.new_zeros(longest, *rows.shape[1:])
            padded[: len(rows)] = rows
        blocks = rows.new_empty(len(self.counts) * longest, *rows.shape[1:])
        _all_gather(blocks, padded, self.group)
        if min(self.counts) == longest:
            return blocks
        return torch.cat([blocks[r * longest : r * longest + count] for r, count in enumerate(self.counts)])

    def sum_own(self, everyone: Tensor) -> Tensor:
        """[N, …] on every rank → [n, …]: this rank's rows of the sum over ranks. ``everyone`` may be overwritten."""
        if self._alone:
            return everyone
        longest, everyone = max(self.counts), everyone.contiguous()
        if min(self.counts) < longest:
            blocks = everyone.new_zeros(len(self.counts), longest, *everyone.shape[1:])
            for block, own in zip(blocks, everyone.split(self.counts), strict=True):
                block[: len(own)] = own
            everyone = blocks.flatten(0, 1)
        summed = everyone.new_empty(longest, *everyone.shape[1:])
        _reduce_scatter(summed, everyone, self.group)
        return summed[: self.counts[self.rank]]

    @property
    def _alone(self) -> bool:
        return len(self.counts) == 1 or not self.pooled or self.total == 0


class _KnownGradients(torch.autograd.Function):
    """A value whose gradients have been computed with it."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor, gradients: tuple[Tensor, ...], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: BackwardCFunction, outer: Tensor) -> tuple[Tensor | None, ...]:
        needed: tuple[bool, ...] = ctx.needs_input_grad[2:]
        scaled = [
            (outer * gradient).to(gradient.dtype) if wanted else None
            for gradient, wanted in zip(ctx.saved_tensors, needed, strict=True)
        ]
        return None, None, *scaled


def with_gradients(value: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """``value`` [], differentiable: its gradient by ``inputs[k]`` is ``gradients[k]`` (same shape)."""
    return _KnownGradients.apply(value, tuple(gradients), *inputs)


def differentiable_across_ranks(
    function: Callable[..., Tensor],
    row_tensors: Sequence[Tensor],
    layouts: Sequence[Rows],
    shared: Sequence[Tensor],
) -> Tensor:
    """The value of ``function(*rows of all ranks, *shared)`` with its exact gradients.

    ``row_tensors[k]`` is [n, …] by ``layouts[k]`` and reaches ``function`` as [N, …]; ``shared`` (scales) are alike on
    all ranks. ``function`` is written in plain torch and returns this rank's value by the convention above: a sum over
    its own rows, times W / N. Must be called on every rank; make half-precision inputs float32 before.
    """
    wants_gradients = torch.is_grad_enabled() and any(t.requires_grad for t in (*row_tensors, *shared))
    everyone = [layout.gather(tensor) for tensor, layout in zip(row_tensors, layouts, strict=True)]
    leaves = [tensor.detach().requires_grad_(wants_gradients) for tensor in (*everyone, *shared)]
    with torch.autocast(leaves[0].device.type, enabled=False), torch.set_grad_enabled(wants_gradients):
        value = function(*leaves)
    if not wants_gradients:
        return value
    found = torch.autograd.grad(value, leaves, allow_unused=True) if value.requires_grad else [None] * len(leaves)
    gradients = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]
    own = [layout.sum_own(gradient) for gradient, layout in zip(gradients, layouts, strict=False)]
    return with_gradients(value.detach(), [*row_tensors, *shared], [*own, *gradients[len(own) :]])


def in_float32(*tensors: Tensor) -> list[Tensor]:
    """The same tensors in float32, or in float64 where they are so already; differentiable."""
    return [t if t.dtype == torch.float64 else t.float() for t in tensors]
