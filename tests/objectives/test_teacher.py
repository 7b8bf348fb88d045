"""L_teacher against its definition in float64, on any number of ranks and of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.objectives.teacher import teacher_loss
from tests.ranks import run_ranks, subgroups

WIDTH = 7
COUNTS = {1: (5,), 2: (4, 3), 3: (6, 0, 2)}


def rows(count: int, seed: int) -> list[Tensor]:
    """Image, text, and the teacher's two, unit rows in float64."""
    generator = torch.Generator().manual_seed(seed)
    found = [torch.randn(count, WIDTH, generator=generator, dtype=torch.float64) for _ in range(4)]
    return [torch.nn.functional.normalize(one, dim=1) for one in found]


def reference(image: Tensor, text: Tensor, taught_image: Tensor, taught_text: Tensor) -> Tensor:
    return (image @ text.T - taught_image @ taught_text.T).square().mean()


def split(world_size: int, rank: int, tensors: list[Tensor]) -> list[Tensor]:
    counts = COUNTS[world_size]
    start = sum(counts[:rank])
    return [tensor[start : start + counts[rank]] for tensor in tensors]


def on_a_rank() -> dict[int, tuple[float, Tensor, Tensor]]:
    found = {}
    for size, group in subgroups([1, 2, 3]).items():
        if group is None:
            continue
        rank = torch.distributed.get_rank()
        own = split(size, rank, rows(sum(COUNTS[size]), seed=size))
        image, text = own[0].requires_grad_(), own[1].requires_grad_()
        loss, _ = teacher_loss(image, text, *own[2:], group=group)
        (3 * loss).backward()
        found[size] = (loss.item(), image.grad / 3, text.grad / 3)
    return found


def test_value_and_gradients_are_those_of_the_definition_on_any_ranks():
    results = run_ranks(3, on_a_rank)
    for size, counts in COUNTS.items():
        tensors = rows(sum(counts), seed=size)
        image, text = tensors[0].requires_grad_(), tensors[1].requires_grad_()
        wanted = reference(image, text, *tensors[2:])
        wanted.backward()
        of_ranks = [result[size] for result in results[:size]]
        assert abs(sum(value for value, _, _ in of_ranks) / size - wanted.item()) < 1e-12
        # averaging over ranks, as DeepSpeed does, gives the gradient of the global loss
        torch.testing.assert_close(torch.cat([g for _, g, _ in of_ranks]) / size, image.grad, atol=1e-12, rtol=1e-10)
        torch.testing.assert_close(torch.cat([g for _, _, g in of_ranks]) / size, text.grad, atol=1e-12, rtol=1e-10)


def test_a_model_that_has_not_moved_has_a_loss_of_exactly_0():
    image, text, *_ = (tensor.float().requires_grad_() for tensor in rows(6, seed=0))
    loss, counts = teacher_loss(image, text, image.detach(), text.detach())
    loss.backward()
    assert loss.item() == 0 and not image.grad.any() and not text.grad.any() and counts == {"pairs": 6}


def test_float32_is_near_the_definition_where_little_has_moved():
    image, text, *_ = (tensor.float() for tensor in rows(64, seed=2))
    taught = [
        tensor + 1e-4 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3))
        for tensor in (image, text)
    ]
    loss, _ = teacher_loss(image, text, *taught)
    wanted = reference(*(tensor.double() for tensor in (image, text, *taught)))
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-4, atol=0)


def test_no_rows_on_any_rank_is_0_in_the_graph():
    empty = torch.zeros(0, WIDTH, requires_grad=True)
    loss, _ = teacher_loss(empty, empty, empty.detach(), empty.detach())
    loss.backward()
    assert loss.item() == 0 and empty.grad is not None
