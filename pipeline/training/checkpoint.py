"""Writing a checkpoint behind training, on any number of ranks, and giving an engine the moments of one.

Training waits only while each rank copies its share to host memory. A thread then writes the copy, flushes it, reads it
back and, when every rank has succeeded, lets the main rank rename the folder. The threads of the ranks agree over a
process group of their own, so that they never meet a collective of training. One checkpoint is written at a time; the
copy is the only memory that it costs, and is kept for the next one. The format is described in pipeline/checkpoint.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor

from pipeline.base.files import SUFFIX, partial_path, replace_folder, write_json
from pipeline.base.ranks import RankInfo
from pipeline.checkpoint.folder import OBJECTIVE, crc32
from pipeline.checkpoint.record import (
    FORMAT_VERSION,
    RECORD,
    CheckpointError,
    CheckpointRecord,
    StateRecord,
    read_record,
)
from pipeline.checkpoint.tensors import CheckpointTensors, flat_tensors, write_tensors
from pipeline.model import FamilyConfig
from pipeline.training.full_state import MOMENTS, full_shapes, own_slices, prepare_moments, set_own_moments
from pipeline.training.run import Engine
from pipeline.training.state import TrainState

ALL_RANKS = "ranks"  # the owner of a folder that all ranks fill
LIMIT_SECONDS = 2 * 3600.0  # assumption: a checkpoint that takes longer to write is lost, and the run with it


@dataclass(frozen=True)
class Snapshot:
    """This rank's share of a checkpoint, in host memory."""

    record: StateRecord
    tensors: dict[str, Tensor]
    objective: dict[str, Tensor]
    shapes: dict[str, list[int]]
    config: FamilyConfig
    fingerprint: dict[str, Any]
    seconds: float  # that training waited


def take_snapshot(
    engine: Engine,
    state: TrainState,
    objective: dict[str, Any],
    rank_info: RankInfo,
    fingerprint: dict[str, Any] | None = None,
    reuse: Mapping[str, Tensor] | None = None,
) -> Snapshot:
    """Copy this rank's share; no collective, and nothing of the copy changes with the next update.

    ``reuse``: the tensors of an earlier snapshot that is written; their memory is taken again, because fresh memory
    costs the kernel more time than the copying.
    """
    began = time.monotonic()
    shapes, tensors = full_shapes(engine), {}
    for name, start, view in own_slices(engine, rank_info):
        whole = view.numel() == torch.Size(shapes[name.partition("/")[2]]).numel()
        key, shape = (name, shapes[name.partition("/")[2]]) if whole else (f"{name}@{start}", [view.numel()])
        kept = (reuse or {}).get(key)
        if kept is None or list(kept.shape) != list(shape):
            kept = torch.empty(shape, dtype=torch.float32, pin_memory=view.is_cuda)
        tensors[key] = kept.copy_(view.reshape(shape), non_blocking=True)
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
    objective = {name: tensor.detach().cpu().clone() for name, tensor in flat_tensors(objective).items()}
    return Snapshot(
        StateRecord(**state.to_json()),
        tensors,
        objective if rank_info.is_main else {},
        shapes,
        engine.module.config,
        fingerprint or {},
        time.monotonic() - began,
    )


def write_snapshot(
    snapshot: Snapshot, folder: Path, rank_info: RankInfo, group: dist.ProcessGroup | None = None
) -> None:
    """Write a checkpoint's folder; every rank must call it. Collective over ``group``.

    Raises:
        CheckpointError: on every rank, if any rank could not write; what was there before is untouched.
    """
    partial = partial_path(folder, ALL_RANKS)
    problem = _make_folder(partial) if rank_info.is_main else ""
    dist.barrier(group=group)
    files: dict[str, dict[str, int]] = {}
    try:
        name = f"tensors-{rank_info.rank:05d}-of-{rank_info.world_size:05d}.safetensors"
        files[name] = write_tensors(partial / name, snapshot.tensors)
        if rank_info.is_main:
            files[OBJECTIVE] = write_tensors(partial / OBJECTIVE, snapshot.objective)
            snapshot.config.save_pretrained(partial)
            config = partial / "config.json"
            files[config.name] = {"bytes": config.stat().st_size, "crc32": crc32(config)}
    except (OSError, SafetensorError) as error:
        problem = problem or f"rank {rank_info.rank}: {error}"
    outcomes: list[Any] = [None] * rank_info.world_size
    dist.all_gather_object(outcomes, (problem, files), group=group)
    problems = [problem for problem, _ in outcomes if problem]
    if rank_info.is_main and not problems:
        record = CheckpointRecord(
            format=FORMAT_VERSION,
            step=snapshot.record.step,
            state=snapshot.record,
            world_size=rank_info.world_size,
            files={name: written for _, files in outcomes for name, written in files.items()},
            shapes=snapshot.shapes,
            fingerprint=snapshot.fingerprint,
        )
        try:
            write_json(partial / RECORD, record.to_json())
            replace_folder(partial, folder, durable=True)
        except OSError as error:
            problems = [str(error)]
    verdict = [problems]
    dist.broadcast_object_list(verdict, src=0, group=group)
    if verdict[0]:
        if rank_info.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"checkpoint {folder} was not written ({'; '.join(verdict[0])}); the one before it is untouched; "
            "free space or mend the folder"
        )


class CheckpointWriter:
    """Writes one snapshot at a time in a thread. Made and closed on every rank."""

    def __init__(self, rank_info: RankInfo, on_written: Callable[[Path, float], None]) -> None:
        """``on_written(folder, seconds)`` is called in the thread of the main rank for every whole checkpoint."""
        self.rank_info = rank_info
        self._on_written = on_written
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=LIMIT_SECONDS))
        self._thread: threading.Thread | None = None
        self._problem: BaseException | None = None

    def begin(self, snapshot: Snapshot, folder: Path) -> None:
        """Write ``snapshot`` behind training; :meth:`wait` must have come before. Every rank must call it."""
        self._problem = None
        self._thread = threading.Thread(target=self._write, args=(snapshot, folder), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
            CheckpointError: on every rank, where the last one was not written; told once.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem

    def is_writing(self) -> bool:
        """Whether this rank's thread is at work."""
        return self._thread is not None and self._thread.is_alive()

    def close(self) -> None:
        """Give the process group back; nothing may be being written."""
        dist.destroy_process_group(self._group)

    def _write(self, snapshot: Snapshot, folder: Path) -> None:
        began = time.monotonic()
        try:
            write_snapshot(snapshot, folder, self.rank_info, self._group)
            if self.rank_info.is_main:
                self._on_written(folder, time.monotonic() - began)
        except (CheckpointError, RuntimeError, OSError) as error:  # gloo's are RuntimeErrors
            self._problem = error


def _make_folder(partial: Path) -> str:
    """Make the folder that all ranks fill, without what killed runs left beside it; the problem, or ""."""
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        for leftover in {partial, *partial.parent.glob(f".step-*{SUFFIX}")}:
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir()
    except OSError as error:
        return str(error)
    return ""


def restore_moments(engine: Engine, checkpoint: Path) -> None:
    """Give the engine's optimizer this rank's share of the moments, and the step count; the weights must be there.

    Raises:
        CheckpointError: a trained parameter has no moments there, or other shapes.
    """
    prepare_moments(engine, read_record(checkpoint).step)
    trained = {name for name, parameter in engine.module.named_parameters() if parameter.requires_grad}
    with CheckpointTensors(checkpoint) as tensors:
        for moment in MOMENTS:
            if missing := sorted(trained - set(tensors.names(moment))):
                raise CheckpointError(
                    f"{checkpoint} has no {moment} of {', '.join(missing[:5])}; it is of another stage"
                )
            for name, shape in full_shapes(engine).items():
                kept = tensors.shapes[f"{moment}/{name}"] if name in trained else tuple(shape)
                if torch.Size(kept).numel() != torch.Size(shape).numel():
                    raise CheckpointError(f"{checkpoint}: {moment} of {name} is {list(kept)}, the model has {shape}")
        set_own_moments(engine, tensors.read_part)
