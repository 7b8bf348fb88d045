"""Parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pipeline.config import OptimizerSettings
from pipeline.tuning.parts import NEW_HEADS, depth_of, is_adapter, num_layers

LEAST_FROM_SCRATCH = 1e-5  # assumption: published runs from random weights use 1e-4 to 1e-3
TYPICAL_WEIGHT = 0.02  # of a matrix of a tower: one over the square root of its width
LEAST_WAY = TYPICAL_WEIGHT / 1000  # assumption: a thousandth of a weight changes no ranking
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


def rate_notes(settings: OptimizerSettings, total_steps: int, *, from_scratch: bool) -> list[str]:
    """Lines for a schedule with which a run would end about where it began."""
    peak, warmup = settings.peak_learning_rate, settings.warmup_steps
    notes = []
    if warmup > total_steps:
        highest = learning_rate(total_steps - 1, total_steps, settings)
        notes.append(
            f"warning: optimizer.warmup_steps is {warmup} and the run has {total_steps}: the learning rate ends at "
            f"{highest:.2g} and never reaches {peak:.2g}; set optimizer.warmup_steps to at most a tenth of the steps"
        )
    if from_scratch and peak < LEAST_FROM_SCRATCH:
        notes.append(
            f"warning: optimizer.peak_learning_rate is {peak:.2g} and the weights are random: that is a rate for "
            "trained ones; from scratch 1e-4 (large) to 1e-3 (tiny) is usual"
        )
    # AdamW moves a weight by at most about the rate in a step, so the sum of the rates bounds the whole way.
    floor = settings.final_learning_rate_share
    rising = min(warmup, total_steps)
    way = peak * (rising * (rising + 1) / (2 * max(1, warmup)) + (total_steps - rising) * (floor + (1 - floor) / 2))
    if way < LEAST_WAY:
        notes.append(
            f"warning: all learning rates of the {total_steps} steps add up to {way:.2g}; no weight can move much "
            f"further, and weights are about {TYPICAL_WEIGHT:g}: raise optimizer.peak_learning_rate or train longer"
        )
    return notes


def set_learning_rates(optimizer: Any, rate: float) -> dict[str, float]:
    """Write ``rate`` times each group's factor into the optimizer; the rates by group name."""
    rates = {}
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
        rates[group["name"]] = group["lr"]
    return rates
