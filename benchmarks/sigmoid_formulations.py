"""The sigmoid loss over ranks in the three ways that public code computes it, written from their definition.

Each takes this rank's images and texts [n, D], scale and bias, and returns a value whose mean over ranks is the loss,
differentiable by autograd. They differ in how texts of other ranks arrive: all of them at once, from neighbour to
neighbour, or with one all-reduce a rank. Logits of every block are kept for the backward pass.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx


def block_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, matched: bool) -> Tensor:
    """−Σ log σ(z · logit) / n over one block of texts; matched pairs on the diagonal, or none."""
    logits = scale * image @ text.T + bias
    labels = -torch.ones_like(logits)
    if matched:
        labels = labels + 2 * torch.eye(len(image), dtype=logits.dtype)
    return -F.logsigmoid(labels * logits).sum() / len(image)


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, text: Tensor) -> Tensor:
        everyone = text.new_empty(dist.get_world_size(), *text.shape)
        dist.all_gather(list(everyone.unbind()), text)
        return everyone

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank()]


class _Shift(torch.autograd.Function):
    """A block goes to the next rank, its gradient comes back from it."""

    @staticmethod
    def forward(ctx: FunctionCtx, block: Tensor) -> Tensor:
        return _exchange(block, +1)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        return _exchange(gradient, -1)


def _exchange(block: Tensor, step: int) -> Tensor:
    size, rank, incoming = dist.get_world_size(), dist.get_rank(), torch.empty_like(block)
    operations = [
        dist.P2POp(dist.isend, block.contiguous(), (rank + step) % size),
        dist.P2POp(dist.irecv, incoming, (rank - step) % size),
    ]
    for request in dist.batch_isend_irecv(operations):
        request.wait()
    return incoming


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, block: Tensor) -> Tensor:
        total = block.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def all_gather(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    blocks = _AllGather.apply(text)
    return sum(block_loss(image, b, scale, bias, rank == dist.get_rank()) for rank, b in enumerate(blocks))


def ring_shift(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    loss, block = block_loss(image, text, scale, bias, True), text
    for _ in range(dist.get_world_size() - 1):
        block = _Shift.apply(block)
        loss = loss + block_loss(image, block, scale, bias, False)
    return loss


def one_all_reduce_a_rank(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    loss = 0.0
    for rank in range(dist.get_world_size()):
        own = rank == dist.get_rank()
        loss = loss + block_loss(image, _AllReduce.apply(text if own else text * 0), scale, bias, own)
    return loss


FORMULATIONS = {"all-gather": all_gather, "ring shift": ring_shift, "all-reduce a rank": one_all_reduce_a_rank}
