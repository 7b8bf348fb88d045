"""The full state: every parameter and its Adam moments, out of and into a DeepSpeed engine of any ZeRO stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.base.ranks import RankInfo
from pipeline.training.run import Engine

MOMENTS = ("exp_avg", "exp_avg_sq")


def prepare_moments(engine: Engine, step: int = 0) -> None:
    """Make AdamW's state for every partition before the first step.

    torch makes it lazily; DeepSpeed 0.19 then links only the first parameter group's to the parameters, and a resumed
    run needs somewhere to put what it read.
    """
    zero = engine.optimizer
    for partition in _partitions(zero):
        zero.optimizer.state[partition] = {
            "step": torch.tensor(float(step), device=partition.device if partition.is_cuda else None),
            **{moment: torch.zeros_like(partition, requires_grad=False) for moment in MOMENTS},
        }
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):  # ZeRO 1 and 2 keep views into that state
        zero._lazy_init_hp_params_optimizer_state()


def held_bytes(engine: Engine) -> tuple[int, int]:
    """Bytes on this rank that are there all the time: of weights, and of the optimizer's copy and moments."""
    weights = 0
    for parameter in engine.module.parameters():
        own = getattr(parameter, "ds_tensor", parameter)  # ZeRO 3's share
        weights += own.numel() * own.element_size()
    zero, optimizer = engine.optimizer, 0
    for partition in _partitions(zero):
        tensors = [partition, *(zero.optimizer.state[partition][moment] for moment in MOMENTS)]
        optimizer += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return weights, optimizer


def _partitions(zero: Any) -> list[Tensor]:
    """This rank's float32 share of every parameter group, as one of DeepSpeed's ZeRO optimizers holds it."""
    return getattr(zero, "fp32_partitioned_groups_flat", None) or zero.single_partition_of_fp32_groups


def full_parameter(parameter: nn.Parameter) -> Tensor:
    """A copy on the CPU of a parameter that ZeRO 3 may have partitioned; collective."""
    if hasattr(parameter, "ds_id"):
        import deepspeed  # not at the top: see load_deepspeed

        gathered = deepspeed.zero.GatheredParameters([parameter])
    else:
        gathered = nullcontext()
    with gathered:
        return parameter.detach().float().cpu().clone().contiguous()


def full_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The float32 state dict of a model under any ZeRO stage; collective."""
    return {name: full_parameter(parameter) for name, parameter in module.named_parameters()}


def own_slices(engine: Engine, rank_info: RankInfo) -> Iterator[tuple[str, int, Tensor]]:
    """This rank's share of every weight and moment: ``(weight/NAME, first number, flat view)``; no collective.

    Together the ranks hold each number once. A view is of memory that the next update changes. Under ZeRO 1 and 2 a
    share follows the optimizer's partition of each group, under ZeRO 3 that of each parameter; what no optimizer
    partitions (frozen parameters under ZeRO 1 and 2) is dealt out by its place in the model.
    """
    # not at the top: see load_deepspeed
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

    rank, size = rank_info.rank, rank_info.world_size
    for number, (name, parameter) in enumerate(engine.module.named_parameters()):
        if hasattr(parameter, "ds_id"):  # ZeRO 3: equal shares, the last one padded
            share = parameter.ds_tensor.numel()
            start = rank * share
            count = max(0, min(share, parameter.ds_numel - start))
            if count == 0:
                continue
            own = safe_get_local_fp32_param(parameter) if parameter.requires_grad else parameter.ds_tensor
            yield f"weight/{name}", start, own.detach().reshape(-1)[:count]
            if parameter.requires_grad:
                for moment in MOMENTS:
                    local = safe_get_local_optimizer_state(parameter, moment)
                    yield f"{moment}/{name}", start, local.detach().reshape(-1)[:count]
            continue
        if not parameter.requires_grad:
            if number % size == rank:
                yield f"weight/{name}", 0, parameter.detach().reshape(-1)
            continue
        mapping = parameter._hp_mapping  # DeepSpeed's; None where nothing is here
        if mapping is None:
            continue
        at = mapping.lp_fragment_address
        yield f"weight/{name}", at.start, mapping.get_hp_fragment().detach().reshape(-1)
        for moment in MOMENTS:
            yield f"{moment}/{name}", at.start, mapping.get_optim_state_fragment(moment).detach().reshape(-1)


def full_shapes(engine: Engine) -> dict[str, list[int]]:
    """The shape of every parameter, however it is partitioned."""
    return {name: list(_full_shape(parameter)) for name, parameter in engine.module.named_parameters()}


def set_own_moments(engine: Engine, read: Callable[[str, str, int, int], Tensor]) -> None:
    """Fill this rank's share of the moments; :func:`prepare_moments` comes first. No collective.

    Args:
        read: ``(moment, parameter's name, first number, end)`` to the numbers.
    """
    from deepspeed.utils import safe_set_local_optimizer_state  # not at the top: see load_deepspeed

    rank = dist.get_rank()
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_id"):
            share = parameter.ds_tensor.numel()
            start = min(rank * share, parameter.ds_numel)
            end = min(start + share, parameter.ds_numel)
            for moment in MOMENTS:
                own = read(moment, name, start, end)
                padded = nn.functional.pad(own, (0, share - own.numel()))
                safe_set_local_optimizer_state(parameter, padded.to(engine.device), moment)
        elif (mapping := parameter._hp_mapping) is not None:
            at = mapping.lp_fragment_address
            for moment in MOMENTS:
                own = read(moment, name, at.start, at.start + at.numel)
                mapping.get_optim_state_fragment(moment).copy_(
                    own.reshape(mapping.get_optim_state_fragment(moment).shape)
                )


def _full_shape(parameter: nn.Parameter) -> torch.Size:
    return parameter.ds_shape if hasattr(parameter, "ds_shape") else parameter.shape
