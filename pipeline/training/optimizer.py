"""Parameter groups, the learning rate as a function of the step, and which parameters a stage trains."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pipeline.config import OptimizerSettings

NEW_HEADS = ("longtext_head.", "boxtext_head.", "dense_feature_head.")
# What only the region losses reach; stage 1 would give these parameters no gradient at all.
REGION_ONLY = ("boxtext_head.", "dense_feature_head.", "logit_scale_finegraind", "logit_scale_hardneg")


def group_of(name: str) -> str:
    """The parameter group of a name in the model's state dict: text, vision, new_heads or scales."""
    if name.startswith("logit_"):
        return "scales"
    if name.startswith(NEW_HEADS):
        return "new_heads"
    return "vision" if name.startswith("vision_model.") else "text"


def freeze_region_parameters(model: nn.Module) -> None:
    """Stage 1 does not train what only the region losses reach."""
    for name, parameter in model.named_parameters():
        if name.startswith(REGION_ONLY):
            parameter.requires_grad_(False)


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Groups by part and by decay: no decay on biases, norms, scales and position tables' one-dimensional relatives.

    Every group carries ``name``, ``factor`` (on the scheduled learning rate) and ``weight_decay``.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            part = group_of(name)
            decays = parameter.ndim >= 2 and part != "scales"
            groups.setdefault((part, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "name": part if decays else f"{part}_no_decay",
            "factor": getattr(settings.group_factors, part),
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (part, decays), parameters in sorted(groups.items())
    ]


def make_optimizer(groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW over the groups; fused kernels where the device has them."""
    return torch.optim.AdamW(
        groups,
        lr=settings.peak_learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=torch.cuda.is_available() or None,
    )


def learning_rate(step: int, total_steps: int, settings: OptimizerSettings) -> float:
    """The learning rate of optimizer step ``step`` (from 0): linear warm-up, then cosine to the final share.

    A function of the step alone, so that resuming needs no scheduler state.
    """
    peak = settings.peak_learning_rate
    if step < settings.warmup_steps:
        return peak * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, total_steps - settings.warmup_steps)
    floor = settings.final_learning_rate_share
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def set_learning_rates(optimizer: Any, rate: float) -> dict[str, float]:
    """Write ``rate`` times each group's factor into the optimizer; the rates by group name."""
    rates = {}
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
        rates[group["name"]] = group["lr"]
    return rates
