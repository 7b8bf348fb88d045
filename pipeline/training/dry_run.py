"""``--dry-run``: the largest step of a run, a checkpoint, an evaluation batch and a log line, measured, then the end.

Everything that the run itself would begin with is read and checked: settings, shards, tokenizer, the checkpoint of a
resume. The run's folder is not touched: what has to be written goes to a folder beside it, on the same disk, which is
removed at the end. MLflow and ``train.remote_folder`` are left alone.

The step is taken twice on the same micro-batches, because the first one also makes what is made once (kernels, memory
pools, connections between ranks); parts of the second are shown beside those of the estimate.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image

from pipeline.base.ranks import RankInfo
from pipeline.base.run_folder import RunFolder
from pipeline.base.run_lock import LOCK
from pipeline.checkpoint.folder import checkpoint_folder, verify_checkpoint
from pipeline.checkpoint.record import CheckpointError
from pipeline.checkpoint.tensors import CheckpointTensors
from pipeline.config import SettingsError, Stage1Settings
from pipeline.data.indexed import IndexedLoader
from pipeline.evaluation.features import EncodeSettings
from pipeline.model import DualEncoder
from pipeline.tracking.start import start_tracking
from pipeline.training.assemble import announce, prepare
from pipeline.training.before import check_inputs
from pipeline.training.dry_run_table import Measured, estimated_of, format_table
from pipeline.training.evaluation import LIMIT_SECONDS, copy_of_model, evaluated_model, validation_losses
from pipeline.training.full_state import held_bytes, own_slices
from pipeline.training.held_batches import HeldBatches
from pipeline.training.load_deepspeed import load_deepspeed
from pipeline.training.loop import log_step
from pipeline.training.memory_count import MemoryCount
from pipeline.training.metrics import StepProgress, reduce_metrics
from pipeline.training.resume import choose_checkpoint, run_folder_held
from pipeline.training.run import Run
from pipeline.training.running import Start, running
from pipeline.training.step import run_step


def dry_run_in_group(settings: Stage1Settings, rank_info: RankInfo, device: torch.device) -> int:
    """The dry run of a stage in the process group that is there; prints the table and returns 0.

    Raises:
        SettingsError, ValueError, OSError, CheckpointError: the run could not begin, or the step does not fit into the
            device's memory; the message says why.
        NonFiniteStep, DataFaultLimit, StoreUnavailable: as in training.
    """
    check_inputs(settings)
    aside = RunFolder.at(settings.train.run_folder).dry_run
    dry = _beside(settings, aside, _resumed_from(settings, rank_info))
    with run_folder_held(dry, rank_info), _emptied(aside, rank_info):
        load_deepspeed(device.type)  # before memory is counted: code is no memory of a model
        memory = MemoryCount(device)
        start = prepare(dry, rank_info, device)
        try:
            if rank_info.is_main:
                announce(replace(start, settings=settings))
            _begin_at_the_largest(start)
            _measure_and_tell(start, memory)
        except torch.OutOfMemoryError as error:
            raise SettingsError(
                f"the largest step does not fit into the device's memory ({str(error).splitlines()[0]}); lower "
                "train.micro_batch_size, set model.gradient_checkpointing=true, or take more devices "
                "(`python -m pipeline.estimate` shows what takes the room)"
            ) from error
        finally:
            start.loader.close()
    return 0


def _resumed_from(settings: Stage1Settings, rank_info: RankInfo) -> str:
    """``train.resume`` as the run itself would find it; a remote copy is not fetched. Collective."""
    if settings.train.resume != "auto":
        return settings.train.resume
    local = settings.train.model_copy(update={"remote_folder": None})
    checkpoint = choose_checkpoint(settings.model_copy(update={"train": local}), rank_info)
    return str(checkpoint) if checkpoint else "never"


def _beside(settings: Stage1Settings, folder: Path, resume: str) -> Stage1Settings:
    """The settings with everything that is written in ``folder``, and one batch of the validation loss."""
    changed = {
        "train": {"run_folder": str(folder), "resume": resume, "remote_folder": None},
        "tracking": {"enabled": False},
        "evaluation": {"validation_batches": 1},
    }
    return settings.model_copy(
        update={name: getattr(settings, name).model_copy(update=update) for name, update in changed.items()}
    )


@contextmanager
def _emptied(folder: Path, rank_info: RankInfo) -> Iterator[None]:
    """The folder without what a killed dry run left, and gone when the block ends; its lock is held meanwhile.

    What a step that was not finite left stays, because it is there to be looked at.
    """
    if rank_info.is_main:
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
    dist.barrier()
    try:
        yield
        dist.barrier()  # every rank has read what it wanted to
    finally:
        if rank_info.is_main and not RunFolder.at(folder).failures.exists():
            shutil.rmtree(folder, ignore_errors=True)


def _begin_at_the_largest(start: Start) -> None:
    """Let the loader begin with the largest step of its plan. Tars without an index have none. Collective."""
    if isinstance(start.loader, IndexedLoader):
        step = [start.loader.largest_step() if start.rank_info.is_main else 0]
        dist.broadcast_object_list(step, src=0)
        start.loader.start_at(step[0])
    elif start.rank_info.is_main:
        print("data.streaming: nobody knows the largest batch of these tars; the first one is taken", flush=True)


def _measure_and_tell(start: Start, memory: MemoryCount) -> None:
    tracker = start_tracking(start.settings, start.folder.path)
    with running(start, tracker, None) as (run, patient):
        measured = _measure(run, start, memory, patient)
    if start.rank_info.is_main:
        estimated = estimated_of(start, measured)
        print(format_table(measured, estimated), flush=True)


def _measure(run: Run, start: Start, memory: MemoryCount, patient: dist.ProcessGroup) -> Measured:
    """Everything in turn; the same on every rank. Collective."""
    run.heartbeat.beat(run.state.step, "data", allowed_seconds=LIMIT_SECONDS)
    began = time.perf_counter()
    held = HeldBatches(run.feed)
    seconds = {"data": time.perf_counter() - began}
    run.feed = held
    _tell(run, "the largest step, for the first time")
    seconds["first"] = _first_step(run)
    _tell(run, "the same step, measured")
    seconds |= _second_step(run)
    peak = memory.peak()
    weights, optimizer = held_bytes(run.engine)
    _tell(run, "a checkpoint")
    size, checkpoint = _checkpoint(run)
    _tell(run, "evaluation" if run.settings.evaluation.every_steps else "no evaluation is set")
    evaluation = _evaluate(run, start, patient)
    means = reduce_metrics({**seconds, **checkpoint, **evaluation}, {})
    largest: list[Any] = [None] * run.rank_info.world_size
    dist.all_gather_object(largest, (peak, weights, optimizer, held.count("phrase_index"), held.count("region_ids")))
    peaks = [one[0] for one in largest if one[0] is not None]
    return Measured(
        patches=held.patches,
        images=held.unit.size,
        frames=held.frames,
        micro_batches=held.unit.parts,
        regions=sum(one[3] for one in largest),
        region_texts=sum(one[4] for one in largest),
        weights=max(one[1] for one in largest),
        optimizer=max(one[2] for one in largest),
        peak=max(peaks) if peaks else None,
        checkpoint_bytes=size,
        seconds=means,
    )


def _first_step(run: Run) -> float:
    """The step with what is made once, and its line in the log with the warnings of a wrong start; seconds."""
    began = time.perf_counter()
    result = run_step(run, False, False, with_health=True, with_norms=True)
    seconds = time.perf_counter() - began
    progress = StepProgress(run.total_steps, run.state.step - 1, run.rank_info.is_main)
    try:
        log_step(run, result, seconds, progress)
    finally:
        progress.close()
    return seconds


def _second_step(run: Run) -> dict[str, float]:
    """Seconds of the step by phase."""
    run.speed.phases.exact = True
    run.speed.phases.take()
    run_step(run, False, False, with_health=False, with_norms=False)
    run.heartbeat.beat(run.state.step, "measured")  # the phase before ends here
    taken = run.speed.phases.take()
    return {name: taken.get(name, 0.0) for name in ("forward", "losses", "backward", "update")}


def _checkpoint(run: Run) -> tuple[int, dict[str, float]]:
    """Bytes of a checkpoint that was written and read back, and its seconds. Collective.

    Raises:
        CheckpointError: on every rank, where it was not written, or reads back as something else.
    """
    run.saver.save(run, must_succeed=True)
    folder = checkpoint_folder(run.settings.train.run_folder, run.state.step)
    began = time.perf_counter()
    problems: list[Any] = [None] * run.rank_info.world_size
    dist.all_gather_object(problems, _difference(run, folder))
    if told := [problem for problem in problems if problem]:
        raise CheckpointError(f"{folder} reads back otherwise than it was written: {told[0]}; check the disk")
    seconds = {"read_back": time.perf_counter() - began, **run.saver.metrics()}
    return sum(file.stat().st_size for file in folder.iterdir()), seconds


def _difference(run: Run, folder: Path) -> str:
    """The first tensor of this rank's share that the files hold otherwise; the main rank checks the checksums, too."""
    try:
        if run.rank_info.is_main:
            verify_checkpoint(folder)
        with CheckpointTensors(folder) as tensors:
            for name, first, view in own_slices(run.engine, run.rank_info):
                kind, _, parameter = name.partition("/")
                if not torch.equal(tensors.read_part(kind, parameter, first, first + view.numel()), view.float().cpu()):
                    return name
    except CheckpointError as error:
        return str(error)
    return ""


def _evaluate(run: Run, start: Start, patient: dist.ProcessGroup) -> dict[str, float]:
    """Seconds of what an evaluation would begin with. Collective."""
    chosen, seconds = run.settings.evaluation, {}
    if chosen.every_steps is None:
        return {}
    run.heartbeat.beat(run.state.step, "evaluation", allowed_seconds=LIMIT_SECONDS)
    began = time.perf_counter()
    copy = copy_of_model(run, start.model.config)
    seconds["evaluation_copy"] = time.perf_counter() - began
    if chosen.shards:
        began = time.perf_counter()
        validation_losses(run, copy, start.tokenizer)
        seconds["validation_batch"] = time.perf_counter() - began
    if chosen.tasks and chosen.data:
        began = time.perf_counter()
        _encode_a_batch(run, copy, start)
        seconds["task_batch"] = time.perf_counter() - began
    dist.barrier(group=patient)
    return seconds


def _encode_a_batch(run: Run, copy: DualEncoder, start: Start) -> None:
    """As many images and long texts as a task encodes at one time, at the largest patch budget; grey and empty."""
    model = evaluated_model(run, copy, start.tokenizer)
    side = model.patch_size * isqrt(max(run.settings.data.patch_budgets))
    with model.evaluating():
        prepared = model.prepare(Image.new("RGB", (side, side), (128, 128, 128)), dense=True)
        model.encode_images([prepared] * EncodeSettings().batch_size, dense=True)
        model.encode_texts(["a photo 照片"] * model.text_batch_size, "long")


def _tell(run: Run, what: str) -> None:
    if run.rank_info.is_main:
        print(f"dry run: {what}", flush=True)
