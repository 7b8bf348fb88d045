"""An all-reduce over all ranks: is it right, and how fast is it."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist

from pipeline.preflight.bandwidth import Bandwidth


def measure(device: torch.device, megabytes: float, repeats: int = 3) -> Bandwidth:
    """Time all-reduces of ``megabytes`` of float32; the median, after one to warm up. Collective."""
    world_size = dist.get_world_size()
    tensor = torch.full((int(megabytes * 1e6 / 4),), float(dist.get_rank() + 1), device=device)
    expected = world_size * (world_size + 1) / 2
    seconds, right = [], True
    for _ in range(repeats + 1):
        work = tensor.clone()
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(work)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        right &= bool((work == expected).all())
    median = sorted(seconds[1:])[repeats // 2]
    return Bandwidth(world_size, megabytes, median, megabytes / 1e3 / median, right)
