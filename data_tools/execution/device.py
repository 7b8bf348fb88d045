"""Where a worker's model goes."""

from __future__ import annotations

import torch


def device_for(worker: int) -> torch.device:
    """The accelerator of this worker, or the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, worker % torch.accelerator.device_count())
