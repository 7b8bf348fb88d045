"""Compiled layers: fewer and larger kernels, where this machine can make them."""

from __future__ import annotations

import shutil

import torch
from torch.utils._triton import has_triton

from pipeline.model import DualEncoder
from pipeline.model.towers import PoolingHead

# Shapes that the layers meet: patch budgets, and the few numbers of texts that bucketing leaves. Beyond this many
# torch would run a layer uncompiled, without a message.
RECOMPILE_LIMIT = 64


def compile_layers(model: DualEncoder, device: torch.device, zero_stage: int) -> str:
    """Compile every layer of both towers and the pooling heads; what was done or why not, as a line for the user.

    Kernels are made when a layer first meets a shape, which takes seconds to a minute.
    """
    problem = why_not(device, zero_stage)
    if problem:
        return f"model.compile: {problem}; the layers run uncompiled"
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    layers = [*model.vision_model.encoder.layers, *model.text_model.encoder.layers]
    heads = [module for module in model.modules() if isinstance(module, PoolingHead)]
    for module in (*layers, *heads):
        module.compile()
    return f"model.compile: {len(layers)} layers and {len(heads)} heads are compiled when they first meet a shape"


def why_not(device: torch.device, zero_stage: int) -> str | None:
    """Why layers cannot be compiled here; None where they can."""
    if zero_stage == 3:
        return "ZeRO 3 gathers weights inside the layers, which compiled layers cannot do"
    if device.type == "cuda" and not has_triton():
        return "Triton, which makes the kernels, is not installed"
    if device.type == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return "no C++ compiler is here"
    return None
