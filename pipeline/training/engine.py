"""From settings to a DeepSpeed engine: cores, ZeRO configuration, precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipeline.base.border import BorderError, read_object
from pipeline.base.ranks import RankInfo, rank_cores
from pipeline.config import SettingsError, Stage1Settings, TrainSettings
from pipeline.config.paths import deepspeed_file
from pipeline.training.load_deepspeed import load_deepspeed
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

    bf16 is torch's autocast over float32 weights: the scalar scales are exact, one float32 copy of the weights exists
    instead of a bf16 copy and its float32 master, and no step is ever skipped for a loss scale.

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
        "torch_autocast": {"enabled": settings.precision == "bf16", "dtype": "bfloat16"},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,  # the loop reports
    }
    clash = sorted(set(config) & (set(owned) | {"optimizer", "scheduler", "train_batch_size", "bf16", "fp16"}))
    if clash:
        raise SettingsError(f"{path} sets {', '.join(clash)}; the run's settings decide these, so remove them there")
    return {**config, **owned}


def build_engine(model: nn.Module, settings: Stage1Settings, rank_info: RankInfo, device: torch.device) -> Engine:
    """The DeepSpeed engine of a model whose weights are final (loaded, frozen where the stage wants it)."""
    deepspeed = load_deepspeed(device.type)
    for parameter in model.parameters():
        if parameter.ndim == 0:  # DeepSpeed 0.19 cannot broadcast a scalar; load_state_dict takes one row for it again
            parameter.data = parameter.data.reshape(1)
    groups = parameter_groups(model.named_parameters(), settings.optimizer)
    engine, *_ = deepspeed.initialize(
        model=model.to(device),
        optimizer=make_optimizer(groups, settings.optimizer),
        config=deepspeed_config(settings.train, settings.optimizer.gradient_clip_norm, rank_info.world_size),
        dist_init_required=False,
    )
    return engine
