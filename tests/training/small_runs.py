"""Whole runs of a stage inside test ranks, several in one process, so that imports are paid once."""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Stage1Settings, Stage2Settings, load_settings
from tests.end_to_end.runs import Material


@dataclass(frozen=True)
class Case:
    """One start of a stage.

    ``stop_at``: ``stop_signal`` reaches the last rank when this step is logged. ``full_at``: from this step's log to
    the next, the last rank can write no file of more than 1,000 bytes, as on a full disk. ``kill_at``: kill -9 of the
    last rank in this step (counted from 0), before it goes backward from the step's second micro-batch.
    """

    stage: int
    overrides: tuple[str, ...]
    stop_at: int | None = None
    stop_signal: int = signal.SIGTERM
    full_at: int | None = None
    kill_at: int | None = None


def case(material: Material, run: Path, *overrides: str, stage: int = 2, **events: int) -> Case:
    found = material.settings(run, "tracking.enabled=false", "data.num_workers=0", *overrides)
    return Case(stage, tuple(found), **events)


def run_cases(cases: Sequence[Case]) -> list[int | str]:
    """On every rank: each case's exit status, or the first line of its error."""
    from pipeline.base.ranks import read_rank_info
    from pipeline.tracking.interface import NoTracking
    from pipeline.tracking.tracker import RunTracker
    from pipeline.training import step as training_step
    from pipeline.training.assemble import run_in_group

    torch.set_num_threads(1)
    rank_info, outcomes = read_rank_info(), []
    kind = RunTracker if rank_info.is_main else NoTracking
    plain, plain_backward = kind.log, training_step._Step.backward
    for one in cases:
        settings = load_settings(Stage1Settings if one.stage == 1 else Stage2Settings, None, one.overrides)
        if rank_info.rank == rank_info.world_size - 1:
            kind.log = _with_events(plain, one)
            training_step._Step.backward = _with_kill(plain_backward, one)
        try:
            outcomes.append(run_in_group(settings, rank_info, torch.device("cpu")))
        except (ValueError, RuntimeError, OSError) as error:
            outcomes.append(f"{type(error).__name__}: {error}")
        kind.log, training_step._Step.backward = plain, plain_backward
    return outcomes


def _with_kill(plain: Callable[..., None], one: Case) -> Callable[..., None]:
    calls = 0

    def backward(self: Any, total: torch.Tensor, is_last: bool) -> None:
        nonlocal calls
        calls = calls + 1 if self.run.state.step == one.kill_at else 0
        if calls == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        plain(self, total, is_last)

    return backward


def _with_events(plain: Callable[..., None], one: Case) -> Callable[..., None]:
    def log(self: object, step: int, values: dict[str, float]) -> None:
        plain(self, step, values)
        if step == one.stop_at:
            os.kill(os.getpid(), one.stop_signal)
        if one.full_at is not None:
            for thread in threading.enumerate():  # the checkpoint of the step before is written behind training
                if thread.name == "checkpoint":
                    thread.join()
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000 if step == one.full_at else hard, hard))

    return log
