"""Writing a checkpoint of a run on any number of ranks, and giving an engine the moments of one.

The format is described in pipeline/checkpoint/folder.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError

from pipeline.base.files import SUFFIX, partial_path, replace_folder, write_json
from pipeline.base.ranks import RankInfo
from pipeline.checkpoint.folder import (
    FORMAT_VERSION,
    OBJECTIVE,
    RECORD,
    CheckpointError,
    checkpoint_folder,
    read_record,
)
from pipeline.checkpoint.tensors import flat_tensors, read_tensors, write_tensors
from pipeline.training.full_state import MOMENTS, full_tensors, prepare_moments, set_moment
from pipeline.training.run import Engine
from pipeline.training.state import TrainState

ALL_RANKS = "ranks"  # the owner of a folder that all ranks fill


def save_checkpoint(
    run_folder: str | Path,
    engine: Engine,
    state: TrainState,
    objective: dict[str, Any],
    rank_info: RankInfo,
    folder: Path | None = None,
) -> Path:
    """Write a checkpoint; every rank must call it. Returns its folder.

    Raises:
        CheckpointError: on every rank, if any rank could not write; what was there before is untouched.
    """
    folder = folder or checkpoint_folder(run_folder, state.step)
    partial = partial_path(folder, ALL_RANKS)
    problem = _make_folder(partial) if rank_info.is_main else ""
    dist.barrier()
    mine = {  # the gathering is collective, so it comes before anything that can fail on one rank alone
        name: tensor
        for number, (name, tensor) in enumerate(full_tensors(engine))
        if number % rank_info.world_size == rank_info.rank
    }
    files: dict[str, dict[str, int]] = {}
    try:
        name = f"tensors-{rank_info.rank:05d}-of-{rank_info.world_size:05d}.safetensors"
        files[name] = write_tensors(partial / name, mine)
        if rank_info.is_main:
            files[OBJECTIVE] = write_tensors(partial / OBJECTIVE, flat_tensors(objective))
            engine.module.config.save_pretrained(partial)
    except (OSError, SafetensorError) as error:
        problem = problem or f"rank {rank_info.rank}: {error}"
    outcomes: list[Any] = [None] * rank_info.world_size
    dist.all_gather_object(outcomes, (problem, files))
    problems = [problem for problem, _ in outcomes if problem]
    if rank_info.is_main and not problems:
        record = {
            "format": FORMAT_VERSION,
            "step": state.step,
            "state": state.to_json(),
            "world_size": rank_info.world_size,
            "files": {name: written for _, files in outcomes for name, written in files.items()},
        }
        try:
            write_json(partial / RECORD, record)
            replace_folder(partial, folder, durable=True)
        except OSError as error:
            problems = [str(error)]
    verdict = [problems]
    dist.broadcast_object_list(verdict, src=0)
    if verdict[0]:
        if rank_info.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"checkpoint {folder} was not written ({'; '.join(verdict[0])}); the one before it is untouched; "
            "free space or mend the folder"
        )
    return folder


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
    """Give the engine's optimizer the moments and step count of a checkpoint; the weights must be in the model.

    Raises:
        CheckpointError: a trained parameter has no moments there.
    """
    prepare_moments(engine, read_record(checkpoint)["step"])
    parameters = {n: p for n, p in engine.module.named_parameters() if p.requires_grad}
    for moment in MOMENTS:
        found = set()
        for name, tensor in read_tensors(checkpoint, f"{moment}/"):
            if name in parameters:
                set_moment(parameters[name], tensor.to(engine.device), moment)
                found.add(name)
        if missing := sorted(set(parameters) - found):
            raise CheckpointError(f"{checkpoint} has no {moment} of {', '.join(missing[:5])}; it is of another stage")
