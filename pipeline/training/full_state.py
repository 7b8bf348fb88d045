"""The full state: every parameter and its Adam moments, out of and into a DeepSpeed engine of any ZeRO stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.training.run import Engine

MOMENTS = ("exp_avg", "exp_avg_sq")


def prepare_moments(engine: Engine, step: int = 0) -> None:
    """Make AdamW's state for every partition before the first step.

    torch makes it lazily; DeepSpeed 0.19 then links only the first parameter group's to the parameters, and a resumed
    run needs somewhere to put what it read.
    """
    zero = engine.optimizer
    flat = getattr(zero, "fp32_partitioned_groups_flat", None) or zero.single_partition_of_fp32_groups
    for partition in flat:
        zero.optimizer.state[partition] = {
            "step": torch.tensor(float(step), device=partition.device if partition.is_cuda else None),
            **{moment: torch.zeros_like(partition, requires_grad=False) for moment in MOMENTS},
        }
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):  # ZeRO 1 and 2 keep views into that state
        zero._lazy_init_hp_params_optimizer_state()


def full_tensors(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and its moments in full, on the CPU; collective."""
    from deepspeed.utils import safe_get_full_optimizer_state  # not at the top: see load_deepspeed

    for name, parameter in engine.module.named_parameters():
        yield f"weight/{name}", full_parameter(parameter)
        if parameter.requires_grad:
            for moment in MOMENTS:
                yield (
                    f"{moment}/{name}",
                    safe_get_full_optimizer_state(parameter, moment)
                    .reshape(_full_shape(parameter))
                    .detach()
                    .cpu()
                    .contiguous(),
                )


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


def set_moment(parameter: nn.Parameter, value: Tensor, moment: str) -> None:
    """Give every rank its share of a full moment; :func:`prepare_moments` comes first."""
    # not at the top: see load_deepspeed
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if not hasattr(parameter, "ds_id"):
        safe_set_full_optimizer_state(parameter, value, moment)
        return
    # ZeRO 3's own setter reads past the end of a parameter whose size is no multiple of the ranks
    size, rank = parameter.ds_tensor.numel(), dist.get_rank()
    flat = value.flatten()
    flat = nn.functional.pad(flat, (0, size * dist.get_world_size() - flat.numel()))
    safe_set_local_optimizer_state(parameter, flat[rank * size : (rank + 1) * size], moment)


def _full_shape(parameter: nn.Parameter) -> torch.Size:
    return parameter.ds_shape if hasattr(parameter, "ds_shape") else parameter.shape
