"""How much memory a stretch of training takes: of the device, or of the process where there is none."""

from __future__ import annotations

import torch

from pipeline.base.host_memory import NotCounted, peak_resident, resident_and_reset


class MemoryCount:
    """The most memory that this process's tensors take from now on."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._before = device, 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
            return
        try:
            self._before = resident_and_reset()
        except NotCounted:
            self._before = -1

    def peak(self) -> int | None:
        """Bytes beyond those at the beginning: of the device, or of the process on CPUs; None where none counts."""
        if self._before < 0:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._before
        return peak_resident() - self._before
