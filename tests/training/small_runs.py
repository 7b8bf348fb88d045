"""Whole runs of a stage inside test ranks, several in one process, so that imports are paid once."""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.config import Stage1Settings, Stage2Settings, load_settings
from tests.end_to_end.runs import Material


@dataclass(frozen=True)
class Case:
    """One start of a stage.

    ``stop_at``: ``stop_signal`` reaches the last rank when this step is logged. ``full_at``: from this step's log to
    the next, the last rank can write no file of more than 1,000 bytes, as on a full disk.
    """

    stage: int
    overrides: tuple[str, ...]
    stop_at: int | None = None
    stop_signal: int = signal.SIGTERM
    full_at: int | None = None


def case(material: Material, run: Path, *overrides: str, stage: int = 2, **events: int) -> Case:
    found = material.settings(run, "tracking.enabled=false", "data.num_workers=0", *overrides)
    return Case(stage, tuple(found), **events)


def run_cases(cases: Sequence[Case]) -> list[int | str]:
    """On every rank: each case's exit status, or the first line of its error."""
    from pipeline.base.ranks import read_rank_info
    from pipeline.tracking.interface import NoTracking
    from pipeline.tracking.tracker import RunTracker
    from pipeline.training.assemble import run_in_group

    torch.set_num_threads(1)
    rank_info, outcomes = read_rank_info(), []
    kind = RunTracker if rank_info.is_main else NoTracking
    plain = kind.log
    for one in cases:
        settings = load_settings(Stage1Settings if one.stage == 1 else Stage2Settings, None, one.overrides)
        if rank_info.rank == rank_info.world_size - 1:
            kind.log = _with_events(plain, one)
        try:
            outcomes.append(run_in_group(settings, rank_info, torch.device("cpu")))
        except (ValueError, RuntimeError, OSError) as error:
            outcomes.append(f"{type(error).__name__}: {error}")
        kind.log = plain
    return outcomes


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
