"""Low-rank additions to linear layers (LoRA, arXiv 2106.09685), by the peft package.

    y = W x + (alpha / rank) · B (A x),   A [rank, in] random, B [out, rank] 0 at the start

so that the first step begins from the model as it is. W is frozen. Merging adds (alpha / rank) · B A to W, after which
the model is one without additions; every export, evaluation and picture of a run is made of merged weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.config import SettingsError, TuneSettings
from pipeline.tuning.parts import HEADS, TOWERS, is_adapter

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER = "default"  # peft's name for the only one
BASE = ".base_layer."  # where peft keeps the layer that it adds to
DOWN, UP = f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight"


def lora_config(model: nn.Module, tune: TuneSettings) -> LoraConfig:
    """peft's configuration for the layers that the settings name, each by its whole name.

    Raises:
        SettingsError: a name in ``tune.lora_layers`` that no linear layer of the towers has, or no peft package.
    """
    try:
        from peft import LoraConfig  # takes seconds; most runs have no additions
    except ImportError as error:
        raise SettingsError(
            f"tune.vision={tune.vision} and tune.text={tune.text} need the peft package, which does not load "
            f"({error}); install it with `pip install -e '.[lora]'`"
        ) from error

    found = lora_targets(model, tune)
    return LoraConfig(r=tune.lora_rank, lora_alpha=tune.lora_alpha, target_modules=found, lora_dropout=0.0, bias="none")


def lora_targets(model: nn.Module, tune: TuneSettings) -> list[str]:
    """The names of the linear layers that get additions.

    Raises:
        SettingsError: a name in ``tune.lora_layers`` that no linear layer of the towers has.
    """
    prefixes = tuple(f"{tower}_model." for tower in TOWERS if getattr(tune, tower) == "lora")
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(prefixes) and not f"{name}.".startswith(HEADS)
    ]
    found = []
    for wanted in tune.lora_layers:
        matched = [name for name in linear if name == wanted or name.endswith(f".{wanted}")]
        if not matched:
            ends = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise SettingsError(
                f"tune.lora_layers holds {wanted!r}, which is no linear layer of {' or '.join(prefixes)}; there are "
                f"{ends}: give these, or longer ends of names, as {linear[0].split('.', 1)[1]}"
            )
        found += [name for name in matched if name not in found]
    return found


def add_lora(model: nn.Module, tune: TuneSettings) -> None:
    """Give the chosen layers their additions; A is drawn from torch's generator. Does nothing without such a choice.

    Raises:
        SettingsError: as :func:`lora_config`.
    """
    if tune.has_lora:
        config = lora_config(model, tune)
        from peft import inject_adapter_in_model  # see lora_config, which has said so where it is missing

        inject_adapter_in_model(config, model, ADAPTER)


def merged_weights(weights: Mapping[str, Tensor], tune: TuneSettings) -> dict[str, Tensor]:
    """The weights of a model without additions, from those of one with them; others as they are.

    In float32, as everything that is exported. A layer's merged weight is a new tensor.
    """
    scaling = tune.lora_alpha / tune.lora_rank
    merged: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if is_adapter(name):
            continue
        layer, found, kind = name.rpartition(BASE)
        if found and kind == "weight":
            down, up = weights[layer + DOWN], weights[layer + UP]
            weight = torch.addmm(weight, up.to(weight), down.to(weight), alpha=scaling)
        merged[f"{layer}.{kind}" if found else name] = weight
    return merged


def adapter_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The additions alone, under the names that peft's own files have."""
    return {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": weight
        for name, weight in weights.items()
        if is_adapter(name)
    }
