"""The process group of a run: device, backend, and one way to join."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from pipeline.base.ranks import RankInfo, read_rank_info


def device_of(info: RankInfo) -> torch.device:
    """The accelerator of this rank's place on its host, or the CPU where there is none."""
    return torch.device("cuda", info.local_rank) if torch.cuda.is_available() else torch.device("cpu")


def join_process_group(info: RankInfo, timeout_seconds: float) -> torch.device:
    """Start NCCL on GPUs, gloo on CPUs, and return this rank's device.

    A single process too forms a group, so that one code path serves all. A collective that takes longer than
    ``timeout_seconds`` fails.
    """
    for name, value in (("RANK", info.rank), ("WORLD_SIZE", info.world_size), ("LOCAL_RANK", info.local_rank)):
        os.environ[name] = str(value)  # DeepSpeed reads these
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500" if info.world_size > 1 else "0")
    device = device_of(info)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    backend, timeout = ("nccl" if on_gpu else "gloo"), timedelta(seconds=timeout_seconds)
    device_id = device if on_gpu else None
    if info.world_size == 1:  # one process needs no port
        dist.init_process_group(
            backend, timeout=timeout, device_id=device_id, store=dist.HashStore(), rank=0, world_size=1
        )
    else:
        dist.init_process_group(backend, timeout=timeout, device_id=device_id)
    return device


def host_group(timeout_seconds: float) -> dist.ProcessGroup | None:
    """The same ranks over gloo, for numbers that lie on the host; None where the default group is of gloo itself.

    A collective, once a run. Through this group ranks tell each other numbers while their GPUs go on computing.
    """
    if dist.get_world_size() == 1 or dist.get_backend() == "gloo":
        return None
    return dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))


def current_rank() -> int:
    """This process's rank in the default group; before there is one, what the launcher's variables say."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else read_rank_info().rank
