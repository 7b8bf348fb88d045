"""A run under way: its parts joined and its heartbeats beating, for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.base.distributed import host_group
from pipeline.base.ranks import RankInfo
from pipeline.base.run_folder import RunFolder
from pipeline.checkpoint.tensors import read_objective
from pipeline.config import Stage1Settings
from pipeline.data.device_feed import DeviceFeed
from pipeline.data.loader import Loader
from pipeline.data.slices import Division
from pipeline.data.tokenizer import Tokenizer
from pipeline.doctor.watch import Watch
from pipeline.model import DualEncoder
from pipeline.supervise.attempts import AttemptLog, note_verdict
from pipeline.tracking.interface import Tracker
from pipeline.tracking.local_log import read_curves
from pipeline.training.checkpoint import restore_moments
from pipeline.training.compilation import compile_layers
from pipeline.training.engine import build_engine
from pipeline.training.evaluation import LIMIT_SECONDS, evaluation_callback
from pipeline.training.full_state import prepare_moments
from pipeline.training.heartbeat import Heartbeat
from pipeline.training.host_metrics import HostMetrics
from pipeline.training.losses import StageLosses
from pipeline.training.pictures import pictures_callback
from pipeline.training.run import Engine, Run
from pipeline.training.saver import Saver
from pipeline.training.stacks import Stacks
from pipeline.training.starting import make_teacher
from pipeline.training.state import TrainState
from pipeline.training.stragglers import Speed


@dataclass(frozen=True)
class Start:
    """What a run begins with."""

    settings: Stage1Settings
    rank_info: RankInfo
    device: torch.device
    tokenizer: Tokenizer
    model: DualEncoder
    checkpoint: Path | None  # resumed from
    state: TrainState
    division: Division
    loader: Loader
    total_steps: int
    fingerprint: dict[str, Any]  # what the run is made of

    @property
    def folder(self) -> RunFolder:
        return RunFolder.at(self.settings.train.run_folder)


@contextmanager
def running(start: Start, tracker: Tracker, attempt: AttemptLog | None) -> Iterator[tuple[Run, dist.ProcessGroup]]:
    """The run, and a group of all ranks whose limit is hours. Collective at both ends.

    ``attempt``: notes of this start, on the main rank where it is one that counts.
    """
    settings, rank_info = start.settings, start.rank_info
    engine, losses = _make_engine_and_losses(start)
    patient = dist.new_group(backend="gloo", timeout=timedelta(seconds=LIMIT_SECONDS))
    callbacks = [
        evaluation_callback(settings, start.model.config, start.tokenizer, patient),
        pictures_callback(settings, start.model.config, start.tokenizer),
    ]
    if attempt is not None:
        attempt.at_step(start.state.step)
        callbacks.insert(0, lambda run: attempt.at_step(run.state.step))

    def on_failure(verdict: str) -> None:
        if rank_info.rank == (1 if verdict.startswith("rank 0") else 0):  # one rank that lives
            note_verdict(start.folder.path, verdict)
        tracker.end("FAILED")

    speed = Speed(start.device, start.model.config, settings.train.precision, settings.trains_regions)
    stacks = Stacks(start.folder.path, rank_info.rank)
    heartbeat = Heartbeat(
        rank_info.rank,
        rank_info.world_size,
        settings.train.timeout_seconds,
        on_failure=on_failure,
        stacks=stacks,
        on_phase=speed.phases.enter,
        waits_for=start.loader.waits_for,
    )
    saver = Saver(settings.train, rank_info, start.fingerprint)
    with stacks, heartbeat, DeviceFeed(start.loader, start.device) as feed:
        yield (
            Run(
                settings=settings,
                rank_info=rank_info,
                device=start.device,
                engine=engine,
                losses=losses,
                division=start.division,
                loader=start.loader,
                feed=feed,
                state=start.state,
                total_steps=start.total_steps,
                tracker=tracker,
                heartbeat=heartbeat,
                saver=saver,
                speed=speed,
                callbacks=[callback for callback in callbacks if callback is not None],
                host_metrics=HostMetrics(rank_info, start.device) if settings.tracking.system_metrics else None,
                teacher=make_teacher(settings, start.tokenizer, start.device),
                watch=_make_watch(start) if rank_info.is_main else None,
            ),
            patient,
        )
    saver.close()
    dist.destroy_process_group(patient)


def _make_watch(start: Start) -> Watch:
    """The doctor beside the run, with the curves up to here."""
    earlier = read_curves(start.folder.path) if start.folder.metrics.is_file() else {}
    return Watch(start.settings, start.total_steps, start.model.config.text_config.projection_size, earlier)


def _make_engine_and_losses(start: Start) -> tuple[Engine, StageLosses]:
    """Both with the checkpoint's state, or with a new run's."""
    engine = build_engine(start.model, start.settings, start.rank_info, start.device)
    if start.settings.model.compile:
        told = compile_layers(start.model, start.device, engine.zero_optimization_stage())
        if start.rank_info.is_main:
            print(told, flush=True)
    losses = StageLosses(start.settings, host_group=host_group(start.settings.collective_seconds))
    losses.state.to(start.device)
    if start.checkpoint:
        restore_moments(engine, start.checkpoint)
        losses.state.load_state_dict(read_objective(start.checkpoint, losses.state.state_dict()), start.device)
    else:
        prepare_moments(engine)
    return engine, losses
