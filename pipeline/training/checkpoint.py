"""Checkpoints that any number of ranks and any ZeRO stage can read.

A checkpoint is a folder ``step-00000120`` of safetensors files: every parameter and its two Adam moments whole, under
the names ``weight/NAME``, ``exp_avg/NAME`` and ``exp_avg_sq/NAME``, spread over the ranks that wrote them, and
``checkpoint.json`` with the training state, sizes and checksums. Whole tensors, not ZeRO's partitions, are what makes
another world size or stage exact; no pickle is read or written. The folder is written aside, read back, and renamed
when every rank has succeeded, so a folder without ``.writing`` is a whole one.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.base.ranks import RankInfo
from pipeline.training.full_state import MOMENTS, full_tensors, prepare_moments, set_moment
from pipeline.training.state import TrainState

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
RECORD = "checkpoint.json"
OBJECTIVE = "objective.safetensors"
_NAME = re.compile(r"step-(\d+)$")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or is not whole; the message names the file and what to do."""


def checkpoint_folder(run_folder: str | Path, step: int) -> Path:
    return Path(run_folder) / "checkpoints" / f"step-{step:08d}"


def list_checkpoints(run_folder: str | Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    parent = Path(run_folder) / "checkpoints"
    found = [path for path in parent.glob("step-*") if _NAME.search(path.name) and (path / RECORD).is_file()]
    return sorted(found, key=lambda path: int(_NAME.search(path.name).group(1)))


def find_resume(run_folder: str | Path, resume: str) -> Path | None:
    """The checkpoint that ``train.resume`` names: the newest whole one for ``auto``, none for ``never``.

    Raises:
        CheckpointError: a named folder is no whole checkpoint.
    """
    if resume == "never":
        return None
    if resume != "auto":
        verify_checkpoint(Path(resume))
        return Path(resume)
    for path in reversed(list_checkpoints(run_folder)):
        try:
            verify_checkpoint(path)
        except CheckpointError as error:
            logger.warning("%s; trying the one before it", error)
            continue
        return path
    return None


def read_record(checkpoint: Path) -> dict[str, Any]:
    try:
        record = json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{checkpoint} is no whole checkpoint: {RECORD} cannot be read ({error})") from error
    if record.get("format") != FORMAT_VERSION:
        raise CheckpointError(f"{checkpoint} has format {record.get('format')}; this version reads {FORMAT_VERSION}")
    return record


def verify_checkpoint(checkpoint: Path) -> None:
    """Every file is there with the size and checksum of its writing.

    Raises:
        CheckpointError: naming the file that is not.
    """
    for name, facts in read_record(checkpoint)["files"].items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != facts["bytes"] or _crc32(path) != facts["crc32"]:
            raise CheckpointError(f"{path} is missing, cut or changed since it was written; use another checkpoint")


def save_checkpoint(
    run_folder: str | Path,
    engine: Any,
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
    aside = folder.with_name(folder.name + ".writing")
    error = ""
    if rank_info.is_main:
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        except OSError as problem:
            error = str(problem)
    dist.barrier()
    mine = {  # the gathering is collective, so it comes before anything that can fail on one rank alone
        name: tensor
        for number, (name, tensor) in enumerate(full_tensors(engine))
        if number % rank_info.world_size == rank_info.rank
    }
    files = {}
    try:
        name = f"tensors-{rank_info.rank:05d}-of-{rank_info.world_size:05d}.safetensors"
        files[name] = _write_tensors(aside / name, mine)
        if rank_info.is_main:
            files[OBJECTIVE] = _write_tensors(aside / OBJECTIVE, _flat(objective))
            engine.module.config.save_pretrained(aside)
    except (OSError, SafetensorError) as problem:
        error = error or f"rank {rank_info.rank}: {problem}"
    outcomes: list[Any] = [None] * rank_info.world_size
    dist.all_gather_object(outcomes, (error, files))
    problems = [problem for problem, _ in outcomes if problem]
    if rank_info.is_main and not problems:
        record = {
            "format": FORMAT_VERSION,
            "step": state.step,
            "state": state.to_json(),
            "world_size": rank_info.world_size,
            "files": {name: facts for _, written in outcomes for name, facts in written.items()},
        }
        try:
            _write_durably(aside / RECORD, json.dumps(record, indent=1))
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(aside, folder)
        except OSError as problem:
            problems = [str(problem)]
    verdict = [problems]
    dist.broadcast_object_list(verdict, src=0)
    if verdict[0]:
        if rank_info.is_main:
            shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(
            f"checkpoint {folder} was not written ({'; '.join(verdict[0])}); the one before it is untouched; "
            "free space or mend the folder"
        )
    return folder


def prune_checkpoints(run_folder: str | Path, keep_last: int, keep_every_steps: int | None) -> None:
    """Remove all but the last ``keep_last`` checkpoints and those at multiples of ``keep_every_steps``."""
    for path in list_checkpoints(run_folder)[:-keep_last]:
        if not keep_every_steps or int(_NAME.search(path.name).group(1)) % keep_every_steps:
            shutil.rmtree(path)


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The float32 state dict of a checkpoint, on the CPU."""
    return {name.removeprefix("weight/"): tensor for name, tensor in _read(checkpoint, "weight/")}


def read_objective(checkpoint: Path, template: dict[str, Any]) -> dict[str, Any]:
    """τ and the memory bank, nested as ``template``, the state dict of a fresh state; what was None is None again."""
    nested: dict[str, Any] = {}
    for name, tensor in load_file(checkpoint / OBJECTIVE).items():
        *parents, last = name.split("/")
        target = nested
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = tensor
    return _fill(nested, template)


def _fill(nested: dict[str, Any], template: dict[str, Any]) -> dict[str, Any]:
    for name, value in template.items():
        if isinstance(value, dict):
            nested[name] = _fill(nested.get(name, {}), value)
        else:
            nested.setdefault(name, None)
    return nested


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}/"))
        elif value is not None:
            flat[prefix + name] = value
    return flat


def restore_moments(engine: Any, checkpoint: Path) -> None:
    """Give the engine's optimizer the moments and step count of a checkpoint; the weights must be in the model."""
    prepare_moments(engine, read_record(checkpoint)["step"])
    parameters = {n: p for n, p in engine.module.named_parameters() if p.requires_grad}
    for moment in MOMENTS:
        found = set()
        for name, tensor in _read(checkpoint, f"{moment}/"):
            name = name.removeprefix(f"{moment}/")
            if name in parameters:
                set_moment(parameters[name], tensor.to(engine.device), moment)
                found.add(name)
        if missing := sorted(set(parameters) - found):
            raise CheckpointError(f"{checkpoint} has no {moment} of {', '.join(missing[:5])}; it is of another stage")


def _read(checkpoint: Path, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name in read_record(checkpoint)["files"]:
        if name != OBJECTIVE:
            with safe_open(checkpoint / name, framework="pt") as file:
                for key in file.keys():
                    if key.startswith(prefix):
                        yield key, file.get_tensor(key)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, int]:
    """Write, read back and compare; size and checksum."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, path)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    with safe_open(path, framework="pt") as file:
        for name, tensor in tensors.items():
            if not torch.equal(_bytes(file.get_tensor(name)), _bytes(tensor)):
                raise OSError(f"{path}: {name} reads back otherwise than it was written")
    return {"bytes": path.stat().st_size, "crc32": _crc32(path)}


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)  # as bytes, NaN equals NaN


def _write_durably(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _crc32(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value
