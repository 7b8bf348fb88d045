"""Times of every rank, and which rank holds the others up.

Collectives make all ranks' steps equally long, so step times hide a slow rank. What differs is what a rank does by
itself: waiting for data and the forward, which ends before the losses meet the other ranks. (Under ZeRO 3 the
forward gathers weights, so there only data tells.)
"""

from __future__ import annotations

import resource
import socket
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from pipeline.data.batch import Batch
from pipeline.estimate.use import step_flops, this_device
from pipeline.model import FamilyConfig

OWN_PHASES = ("data", "forward")  # without a collective
SLOW_SHARE = 0.15  # of the median beyond it; assumption: less is the noise of shared machines
SLOW_IN_A_ROW = 2  # log intervals before a rank is named
SHOWN = ("data", "forward", "backward")


class PhaseTimes:
    """Seconds by phase since the last :meth:`take`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = {}
        self._phase, self._since = "", time.perf_counter()
        self.exact = False  # wait for the device at every border: for steps that are logged

    def enter(self, phase: str) -> None:
        """This phase begins, and the one before ends."""
        if self.exact and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._phase:
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    def take(self) -> dict[str, float]:
        """The seconds so far, and begin anew."""
        self.enter("")
        seconds, self._seconds = self._seconds, {}
        return seconds


@dataclass
class Stragglers:
    """Compares the ranks at every log."""

    _slow: dict[int, int] = field(default_factory=dict)  # rank -> log intervals in a row

    def compare(self, ranks: Sequence[tuple[str, Mapping[str, float]]]) -> tuple[dict[str, float], list[str]]:
        """Metrics, and a line for a rank that is slow for the second time in a row.

        Args:
            ranks: host and seconds by phase, by rank.
        """
        own = [sum(times.get(phase, 0.0) for phase in OWN_PHASES) for _, times in ranks]
        slowest, middle = max(range(len(own)), key=own.__getitem__), statistics.median(own)
        host, times = ranks[slowest]
        # of two ranks the median lies between them: the other one is the measure
        measure = min(own) if len(own) == 2 else middle
        metrics = {"ranks/slowest": float(slowest), "ranks/lag_seconds": own[slowest] - measure}
        for phase in SHOWN:
            values = [times.get(phase, 0.0) for _, times in ranks]
            metrics[f"ranks/{phase}_seconds/median"] = statistics.median(values)
            metrics[f"ranks/{phase}_seconds/slowest"] = values[slowest]
        is_slow = len(own) > 1 and own[slowest] > (1 + SLOW_SHARE) * measure
        self._slow = {slowest: self._slow.get(slowest, 0) + 1} if is_slow else {}
        if self._slow.get(slowest, 0) < SLOW_IN_A_ROW:
            return metrics, []
        parts = ", ".join(f"{phase} {times.get(phase, 0.0):.2f} s" for phase in SHOWN)
        return metrics, [
            f"rank {slowest} (host {host}) is slow: {own[slowest]:.2f} s of its own work since the last log against "
            f"{measure:.2f} s elsewhere ({parts}), {self._slow[slowest]} logs in a row"
        ]


class Speed:
    """What a run makes of its devices: tokens a second, model FLOPs used, memory, and the ranks' own times."""

    def __init__(self, device: torch.device, config: FamilyConfig, precision: str, with_regions: bool) -> None:
        self.phases = PhaseTimes(device)
        self._device, self._config, self._with_regions = device, config, with_regions
        row = this_device(device)
        self._peak = row.flops_per_second(precision) if row is not None else None
        self._stragglers = Stragglers()
        self._tokens = self._flops = 0.0
        self._since = time.perf_counter()

    def count(self, batch: Batch) -> float:
        """A micro-batch that this rank goes forward and backward through. Returns its floating-point operations."""
        images, patches = batch.pixel_attention_mask.shape
        short = len(batch.short_ids) + len(batch.region_ids)
        self._tokens += images * patches + short * batch.short_ids.shape[1] + batch.long_ids.numel()
        dense = images if self._with_regions else 0
        flops = step_flops(self._config, images, patches, short, len(batch.long_ids), dense)
        self._flops += flops
        return flops

    def report(self) -> tuple[dict[str, float], list[str]]:
        """Metrics since the last report, and lines about slow ranks; the same on every rank. Collective."""
        seconds = self.phases.take()
        now = time.perf_counter()
        elapsed, self._since = now - self._since, now
        memory = device_memory_gigabytes(self._device)
        mine = (socket.gethostname(), seconds, self._tokens, self._flops, memory)
        self._tokens = self._flops = 0.0
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        metrics, lines = self._stragglers.compare([(one[0], one[1]) for one in everyone])
        metrics["tokens_per_second"] = sum(one[2] for one in everyone) / elapsed
        metrics["device_memory_gigabytes"] = max(one[4] for one in everyone)
        if self._peak is not None:
            metrics["model_flops_used"] = sum(one[3] for one in everyone) / elapsed / self._peak / len(everyone)
        return metrics, lines


def device_memory_gigabytes(device: torch.device) -> float:
    """The most that tensors had on the device since the start; on CPUs the process's highest resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
