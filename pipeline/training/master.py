"""Weights in bf16 whose float32 numbers stay exact.

With ``train.weights=bf16`` DeepSpeed casts every parameter to bf16 and updates a float32 copy, the master, of which
each rank has a share. Its cast leaves out three things, which are made good here:

- the master begins with the float32 weights, not with what the cast left of them, so that a resume is exact;
- what does not train keeps its float32 numbers, in host memory, for checkpoints and exports;
- the learned scalars are read in float32 (``DualEncoder.exact_scalars``): with eight bits a scale of 100 moves in
  steps of three.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.base.ranks import RankInfo
from pipeline.training.full_state import KEPT, frozen_range, own_share, padded_share
from pipeline.training.optimizer import group_of
from pipeline.training.run import Engine


def keep_exact(engine: Engine, weights: Mapping[str, Tensor], rank_info: RankInfo) -> None:
    """Give a new engine the float32 numbers that its cast rounded; collective.

    Args:
        weights: the model's parameters by name, as they were before.
    """
    from deepspeed.utils import safe_set_local_fp32_param  # not at the top: see load_deepspeed

    for number, (name, parameter) in enumerate(engine.module.named_parameters()):
        flat = weights[name].reshape(-1)
        if not parameter.requires_grad:
            start, end = frozen_range(parameter, number, rank_info)
            setattr(parameter, KEPT, flat[start:end].cpu().clone())
        elif hasattr(parameter, "ds_id"):
            share = parameter.ds_tensor.numel()
            own = flat[rank_info.rank * share : (rank_info.rank + 1) * share]
            safe_set_local_fp32_param(parameter, padded_share(parameter, own).to(engine.device))
        elif (mapping := parameter._hp_mapping) is not None:
            at = mapping.lp_fragment_address
            mapping.get_hp_fragment().data.copy_(flat[at.start : at.start + at.numel])
    scalars = {name: weights[name] for name, _ in engine.module.named_parameters() if group_of(name) == "scales"}
    engine.module.exact_scalars = {name: scalar.to(engine.device).reshape(1) for name, scalar in scalars.items()}


def refresh_scalars(engine: Engine, rank_info: RankInfo) -> None:
    """Read the learned scalars from the master, after each update; collective where the weights are bf16.

    One all-reduce of a few numbers, for which the host does not wait.
    """
    module = engine.module
    if not module.exact_scalars:
        return
    trained = [
        (number, name, parameter)
        for number, (name, parameter) in enumerate(module.named_parameters())
        if name in module.exact_scalars and parameter.requires_grad
    ]
    found = torch.zeros(len(trained), device=engine.device)
    for place, (number, _, parameter) in enumerate(trained):
        share = own_share(parameter, number, rank_info)
        if share is not None:
            found[place] = share.weight[0]
    dist.all_reduce(found)
    names = [name for _, name, _ in trained]
    module.exact_scalars = {**module.exact_scalars, **dict(zip(names, found.split(1), strict=True))}
