"""Parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pipeline.config import OptimizerSettings
from pipeline.tuning.parts import NEW_HEADS, depth_of, is_adapter, num_layers

# Modules whose output lies in the joint space, and what uses them; of FG-CLIP 2, of FG-CLIP 1, or of both.
PROJECTIONS = {
    "vision_model.head": "images",
    "text_model.head": "short",
    "longtext_head": "long",
    "dense_feature_head": "regions",
    "visual_projection": "images",
    "text_projection": "short",
    "roi_projection": "regions",
    "boxtext_head": "regions",
}


def group_of(name: str) -> str:
    """The parameter group of a name in the model's state dict: text, vision, new_heads, scales or adapters."""
    if is_adapter(name):
        return "adapters"
    if name.startswith("logit_"):
        return "scales"
    if name.startswith(NEW_HEADS):
        return "new_heads"
    return "vision" if name.startswith(("vision_model.", "visual_projection.")) else "text"


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Groups by part, by decay and, with ``optimizer.layer_decay``, by depth.

    No decay on biases, norms, scales and position tables' one-dimensional relatives. Every group carries ``name``,
    ``factor`` (on the scheduled learning rate) and ``weight_decay``. With layer decay d, what lies n layers before the
    end of its tower trains at d^n of its part's rate; heads and scales at all of it.
    """
    parameters = dict(named)
    layers = num_layers(parameters)
    groups: dict[tuple[str, int, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            part = group_of(name)
            depth, last = depth_of(name, layers)
            before_end = last - depth if settings.layer_decay < 1 else 0
            decays = parameter.ndim >= 2 and part != "scales"
            groups.setdefault((part, before_end, decays), []).append(parameter)
    return [
        {
            "params": members,
            "name": part + (f"_before_end_{before_end}" if before_end else "") + ("" if decays else "_no_decay"),
            "factor": getattr(settings.group_factors, part) * settings.layer_decay**before_end,
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (part, before_end, decays), members in sorted(groups.items())
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
