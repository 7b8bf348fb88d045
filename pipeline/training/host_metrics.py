"""How busy this host and this rank's device are, as metrics ``system/HOST/…``.

Every rank samples its device; one rank a host samples the host. The loop gathers them with its other metrics, so that
they reach the store through rank 0, which alone may be able to write it.
"""

from __future__ import annotations

import re
import socket
import time

import psutil
import torch

from pipeline.base.ranks import RankInfo

GIGABYTE = 1e9


class HostMetrics:
    """Rates are since the sample before."""

    def __init__(self, rank_info: RankInfo, device: torch.device) -> None:
        self.host = re.sub(r"[^A-Za-z0-9_.-]", "_", socket.gethostname())
        self.rank_info, self.device = rank_info, device
        self._network = psutil.net_io_counters()
        self._time = time.monotonic()
        psutil.cpu_percent()  # the first call only begins to count

    def sample(self) -> dict[str, float]:
        """Percent, gigabytes and megabytes a second; names differ from rank to rank where their values do."""
        found: dict[str, float] = {}
        if self.rank_info.is_local_main:
            found |= self._host()
        if self.device.type == "cuda":
            found |= self._device()
        return {f"system/{self.host}/{name}": value for name, value in found.items()}

    def _host(self) -> dict[str, float]:
        memory, network, now = psutil.virtual_memory(), psutil.net_io_counters(), time.monotonic()
        found = {"cpu_percent": psutil.cpu_percent(), "memory_percent": memory.percent}
        if network is not None and self._network is not None:
            seconds = max(now - self._time, 1e-9)
            found["network_received_mb_per_s"] = (network.bytes_recv - self._network.bytes_recv) / 1e6 / seconds
            found["network_sent_mb_per_s"] = (network.bytes_sent - self._network.bytes_sent) / 1e6 / seconds
        self._network, self._time = network, now
        return found

    def _device(self) -> dict[str, float]:
        free, total = torch.cuda.mem_get_info(self.device)
        name = f"gpu{self.rank_info.local_rank}"
        return {
            f"{name}_memory_percent": 100 * (total - free) / total,
            f"{name}_memory_peak_gb": torch.cuda.max_memory_allocated(self.device) / GIGABYTE,
        }
