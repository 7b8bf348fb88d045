"""What a run consists of, as the loop and its callbacks see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from pipeline.base.ranks import RankInfo
from pipeline.config import Stage1Settings
from pipeline.data.batch import Batch
from pipeline.data.device_feed import Source
from pipeline.data.loader import Loader
from pipeline.data.slices import Division
from pipeline.doctor.watch import Watch
from pipeline.model import DualEncoder, Embeddings
from pipeline.tracking.interface import Tracker
from pipeline.training.heartbeat import Heartbeat
from pipeline.training.host_metrics import HostMetrics
from pipeline.training.losses import LossOutput, StageLosses
from pipeline.training.state import TrainState
from pipeline.training.teacher import Teacher

if TYPE_CHECKING:
    from pipeline.training.saver import Saver
    from pipeline.training.stragglers import Speed


class Engine(Protocol):
    """What training uses of ``deepspeed.DeepSpeedEngine``, which has no types of its own."""

    module: DualEncoder
    optimizer: Any  # one of DeepSpeed's ZeRO optimizers, which share no class
    device: torch.device

    def __call__(self, batch: Batch, regions: bool) -> Embeddings: ...

    def backward(self, loss: Tensor) -> Any: ...

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None: ...

    def step(self) -> None: ...

    def was_step_applied(self) -> bool: ...

    def zero_optimization_stage(self) -> int: ...

    def get_global_grad_norm(self) -> float | None: ...


@dataclass
class Run:
    """Everything a step needs; made by ``pipeline.training.assemble``."""

    settings: Stage1Settings
    rank_info: RankInfo
    device: torch.device
    engine: Engine
    losses: StageLosses
    division: Division  # of global batches, among ranks and micro-batches
    loader: Loader  # micro-batches of this rank, in order, without end
    feed: Source  # the same, on the device ahead of need
    state: TrainState
    total_steps: int
    tracker: Tracker
    heartbeat: Heartbeat
    saver: Saver
    speed: Speed
    # Called on every rank with the run after a step's update; they do side effects only, never mathematics.
    callbacks: list[Callable[[Run], None]] = field(default_factory=list)
    last_metrics: dict[str, float] = field(default_factory=dict)
    host_metrics: HostMetrics | None = None  # None: not asked for
    teacher: Teacher | None = None
    ended_early: bool = False  # train.stop_after_worse evaluations in a row bettered nothing
    watch: Watch | None = None  # of the main rank


@dataclass
class StepResult:
    """What one optimizer step left for the log, of this rank: unweighted loss parts, counters, health."""

    batches: list[Batch]  # the micro-batches that the newest losses were computed from
    # Figures stay on the device until they are logged; in float64, so that they add up as Python's numbers do.
    total: Tensor | float = 0.0
    parts: dict[str, Tensor] = field(default_factory=dict)
    counters: dict[str, Tensor] = field(default_factory=dict)
    health: dict[str, float] = field(default_factory=dict)
    wait_seconds: float = 0.0
    flops: float = 0.0  # of this rank
    pools: int = 0  # batches that losses were computed from, each by itself
    stop: bool = False
    save: bool = False

    def add(self, output: LossOutput, share: float = 1.0) -> None:
        """Take up the losses of a batch that is ``share`` of the step. Reads nothing."""
        self.pools += 1
        self.total = self.total + share * output.total.detach().double()
        for name, value in output.parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + share * value.double()
        for name, value in output.counters.items():
            self.counters[name] = self.counters.get(name, 0.0) + value.double()

    def read(self) -> tuple[dict[str, float], dict[str, float]]:
        """The losses, ``loss`` being their weighted sum, and the counters, as numbers: one wait for the device."""
        named = {"loss": torch.as_tensor(self.total), **self.parts}
        values = [value.to(named["loss"].device).double() for value in (*named.values(), *self.counters.values())]
        numbers = torch.stack(values).tolist()
        return (
            dict(zip(named, numbers[: len(named)], strict=True)),
            dict(zip(self.counters, numbers[len(named) :], strict=True)),
        )
