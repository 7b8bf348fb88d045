"""The full state: every parameter and its Adam moments, out of and into a DeepSpeed engine of any ZeRO stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.base.ranks import RankInfo
from pipeline.training.run import Engine

MOMENTS = ("exp_avg", "exp_avg_sq")
KEPT = "kept_share"  # the float32 numbers of a bf16 parameter that does not train, of this rank's share


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
    # ZeRO 3; ZeRO 1 with bf16 weights; ZeRO 1 and 2
    names = ("fp32_partitioned_groups_flat", "fp32_groups_flat_partition", "single_partition_of_fp32_groups")
    return next(found for found in (getattr(zero, name, None) for name in names) if found is not None)


def full_parameter(parameter: nn.Parameter) -> Tensor:
    """A copy on the CPU of a parameter that ZeRO 3 may have partitioned; collective."""
    if hasattr(parameter, "ds_id"):
        import deepspeed  # not at the top: see load_deepspeed

        gathered = deepspeed.zero.GatheredParameters([parameter])
    else:
        gathered = nullcontext()
    with gathered:
        return parameter.detach().float().cpu().clone().contiguous()


def full_state_dict(engine: Engine, rank_info: RankInfo) -> dict[str, Tensor]:
    """The float32 state dict of the model under any ZeRO stage; collective. Of bf16 weights it is the master's."""
    state = {}
    for number, (name, parameter) in enumerate(engine.module.named_parameters()):
        if parameter.dtype == torch.bfloat16:
            state[name] = _joined_shares(parameter, own_share(parameter, number, rank_info), engine.device)
        else:
            state[name] = full_parameter(parameter)
    return state


@dataclass(frozen=True)
class Share:
    """This rank's numbers of a parameter, from ``start`` on, as flat views."""

    start: int
    weight: Tensor
    moments: dict[str, Tensor]  # of what trains


def own_share(parameter: nn.Parameter, number: int, rank_info: RankInfo) -> Share | None:
    """What this rank holds of the model's parameter ``number`` in float32; None for nothing. No collective.

    Together the ranks hold each number once. A view is of memory that the next update changes. Under ZeRO 1 and 2 a
    share follows the optimizer's partition of each group, under ZeRO 3 that of each parameter; what no optimizer
    partitions (frozen parameters under ZeRO 1 and 2) is dealt out by its place in the model.
    """
    # not at the top: see load_deepspeed
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

    if not parameter.requires_grad:
        start, end = frozen_range(parameter, number, rank_info)
        if start == end:
            return None
        kept = getattr(parameter, KEPT, None)  # of bf16 weights
        own = parameter.ds_tensor if hasattr(parameter, "ds_id") else parameter
        return Share(start, (own.detach().reshape(-1)[: end - start]) if kept is None else kept, {})
    if hasattr(parameter, "ds_id"):  # ZeRO 3: equal shares, the last one padded
        start, end = _range_of_share(parameter, rank_info.rank)
        if start == end:
            return None
        numbers = {moment: safe_get_local_optimizer_state(parameter, moment) for moment in MOMENTS}
        views = {moment: local.detach().reshape(-1)[: end - start] for moment, local in numbers.items()}
        return Share(start, safe_get_local_fp32_param(parameter).detach().reshape(-1)[: end - start], views)
    mapping = parameter._hp_mapping  # DeepSpeed's; None where nothing is here
    if mapping is None:
        return None
    views = {moment: mapping.get_optim_state_fragment(moment).detach().reshape(-1) for moment in MOMENTS}
    return Share(mapping.lp_fragment_address.start, mapping.get_hp_fragment().detach().reshape(-1), views)


def frozen_range(parameter: nn.Parameter, number: int, rank_info: RankInfo) -> tuple[int, int]:
    """The first number and the end of what this rank writes of a parameter that does not train."""
    if hasattr(parameter, "ds_id"):
        return _range_of_share(parameter, rank_info.rank)
    return (0, parameter.numel()) if number % rank_info.world_size == rank_info.rank else (0, 0)


def own_slices(engine: Engine, rank_info: RankInfo) -> Iterator[tuple[str, int, Tensor]]:
    """This rank's share of every weight and moment: ``(weight/NAME, first number, flat view)``; see ``own_share``."""
    for number, (name, parameter) in enumerate(engine.module.named_parameters()):
        share = own_share(parameter, number, rank_info)
        if share is not None:
            yield f"weight/{name}", share.start, share.weight
            for moment, view in share.moments.items():
                yield f"{moment}/{name}", share.start, view


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
            start, end = _range_of_share(parameter, rank)
            for moment in MOMENTS:
                padded = padded_share(parameter, read(moment, name, start, end))
                safe_set_local_optimizer_state(parameter, padded.to(engine.device), moment)
        elif (mapping := parameter._hp_mapping) is not None:
            at = mapping.lp_fragment_address
            for moment in MOMENTS:
                own = read(moment, name, at.start, at.start + at.numel)
                mapping.get_optim_state_fragment(moment).copy_(
                    own.reshape(mapping.get_optim_state_fragment(moment).shape)
                )


def padded_share(parameter: nn.Parameter, own: Tensor) -> Tensor:
    """``own`` flat numbers of a parameter under ZeRO 3, with zeros up to the size of a share."""
    return nn.functional.pad(own, (0, parameter.ds_tensor.numel() - own.numel()))


def _range_of_share(parameter: nn.Parameter, rank: int) -> tuple[int, int]:
    """The first number and the end of a rank's share under ZeRO 3; the same number twice for nothing."""
    share = parameter.ds_tensor.numel()
    start = min(rank * share, parameter.ds_numel)
    return start, min(start + share, parameter.ds_numel)


def _joined_shares(parameter: nn.Parameter, share: Share | None, device: torch.device) -> Tensor:
    """The whole of a parameter in float32 on the CPU from every rank's share; collective."""
    shape = _full_shape(parameter)
    whole = torch.zeros(shape.numel(), device=device)
    if share is not None:
        whole[share.start : share.start + share.weight.numel()] = share.weight
    dist.all_reduce(whole)
    return whole.cpu().reshape(shape)


def _full_shape(parameter: nn.Parameter) -> torch.Size:
    return parameter.ds_shape if hasattr(parameter, "ds_shape") else parameter.shape
