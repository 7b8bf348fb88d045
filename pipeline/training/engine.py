"""From settings to a DeepSpeed engine: cores, ZeRO configuration, precision."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn

from pipeline.base.border import BorderError, read_object
from pipeline.base.ranks import RankInfo, rank_cores
from pipeline.config import SettingsError, Stage1Settings, TrainSettings
from pipeline.config.paths import deepspeed_file
from pipeline.training.load_deepspeed import load_deepspeed
from pipeline.training.master import keep_exact
from pipeline.training.optimizer import make_optimizer, parameter_groups
from pipeline.training.run import Engine


def prepare_cores(rank_info: RankInfo, device: torch.device, settings: TrainSettings) -> None:
    """Divide the machine's cores among its ranks; on CPUs, let them add up in one order.

    With two threads or more, torch adds the gradients of an indexed tensor's repeated rows by atomic additions, in
    whatever order the threads come, and a resumed run would differ from an uninterrupted one in its last bits.
    """
    torch.set_num_threads(settings.threads_per_rank or rank_cores(rank_info.local_world_size))
    torch.backends.cuda.matmul.allow_tf32 = settings.tf32  # the losses switch it off for themselves
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # a search for errors that costs time


def deepspeed_config(settings: TrainSettings, clip_norm: float, world_size: int) -> dict[str, Any]:
    """The JSON file's choices with what the settings decide filled in.

    No mode has a loss scale, so no step is ever skipped for one.

    Raises:
        SettingsError: no such file, or a key in it that the settings own.
    """
    path = deepspeed_file(settings)
    try:
        config = read_object(path)
    except BorderError as error:
        raise SettingsError(f"train.deepspeed_config: {error}; launch/ has zero1.json to zero3.json") from error
    owned = {
        # DeepSpeed only reports throughput from these two; the loop says which backward is a step's last
        "train_micro_batch_size_per_gpu": max(1, settings.global_batch_size // world_size),
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip_norm,
        **_types(settings),
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,  # the loop reports
    }
    clash = sorted(set(config) & (set(owned) | {"optimizer", "scheduler", "train_batch_size", "bf16", "fp16"}))
    if clash:
        raise SettingsError(f"{path} sets {', '.join(clash)}; the run's settings decide these, so remove them there")
    return {**config, **owned}


def _types(settings: TrainSettings) -> dict[str, Any]:
    """What weights, products and gradients are computed in, in DeepSpeed's words.

    With bf16 weights gradients are added up over micro-batches and ranks in float32: eight bits would lose what is
    small beside the sum. ``immediate_grad_update`` frees a bf16 gradient as soon as it is added (ZeRO 1).
    """
    if settings.weights == "fp32":  # one copy of the weights; autocast computes the products in bf16
        return {"torch_autocast": {"enabled": settings.precision == "bf16", "dtype": "bfloat16"}}
    return {
        "bf16": {"enabled": True, "immediate_grad_update": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
    }


def build_engine(model: nn.Module, settings: Stage1Settings, rank_info: RankInfo, device: torch.device) -> Engine:
    """The DeepSpeed engine of a model whose weights are final (loaded, frozen where the stage wants it)."""
    deepspeed = load_deepspeed(device.type)
    for parameter in model.parameters():
        if parameter.ndim == 0:  # DeepSpeed 0.19 cannot broadcast a scalar; load_state_dict takes one row for it again
            parameter.data = parameter.data.reshape(1)
    # A global that an earlier engine of this process may have set: gradients would travel in each weight's own type.
    autocast: Any = import_module("deepspeed.runtime.torch_autocast")
    autocast.TORCH_AUTOCAST_INITIALIZED = False
    # It would print the machine's memory before and after each group of weights.
    optimizer_of_bf16: Any = import_module("deepspeed.runtime.bf16_optimizer")
    optimizer_of_bf16.see_memory_usage = lambda *args, **kwargs: None
    groups = parameter_groups(model.named_parameters(), settings.optimizer)
    in_bf16 = settings.train.weights == "bf16"
    # DeepSpeed's cast makes new tensors and leaves these as they are
    exact = {name: parameter.detach() for name, parameter in model.named_parameters()} if in_bf16 else {}
    engine, *_ = deepspeed.initialize(
        model=model.to(device),
        optimizer=make_optimizer(groups, settings.optimizer),
        config=deepspeed_config(settings.train, settings.optimizer.gradient_clip_norm, rank_info.world_size),
        dist_init_required=False,
    )
    if in_bf16:
        keep_exact(engine, exact, rank_info)
    return engine
