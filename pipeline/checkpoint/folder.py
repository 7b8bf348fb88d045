"""A checkpoint's folder: its name, whether it is whole, and which one a run goes on from.

A checkpoint is a folder ``step-00000120`` of safetensors files: every parameter and its two Adam moments, each rank's
share in a file of its own (pipeline/checkpoint/tensors.py), the objectives' state, the model's configuration, and
``checkpoint.json`` with the training state, sizes and checksums (pipeline/checkpoint/record.py). Slices are of the
parameters themselves, not of ZeRO's groups, so any other world size or stage reads them; no pickle is read or written.
The folder is written aside, read back, and renamed when every rank has succeeded (pipeline/training/checkpoint.py).
"""

from __future__ import annotations

import logging
import re
import shutil
import zlib
from collections.abc import Collection
from pathlib import Path

from pipeline.base.files import move
from pipeline.base.run_folder import RunFolder
from pipeline.checkpoint.record import RECORD, CheckpointError, read_record

logger = logging.getLogger(__name__)

OBJECTIVE = "objective.safetensors"  # τ and the memory bank
_NAME = re.compile(r"step-(\d+)")


def checkpoint_folder(run_folder: str | Path, step: int) -> Path:
    return RunFolder.at(run_folder).checkpoints / f"step-{step:08d}"


def list_checkpoints(run_folder: str | Path) -> list[Path]:
    """The checkpoints of a run that have a record, oldest first."""
    return [folder for folder in _step_folders(run_folder) if (folder / RECORD).is_file()]


def find_resume(run_folder: str | Path, resume: str) -> Path | None:
    """The checkpoint that ``train.resume`` names: the newest whole one for ``auto``, none for ``never``.

    Raises:
        CheckpointError: a named folder is no whole checkpoint; for ``auto``, there are checkpoints and all are damaged.
    """
    if resume == "never":
        return None
    if resume != "auto":
        verify_checkpoint(Path(resume))
        return Path(resume)
    problems = []
    for folder in reversed(_step_folders(run_folder)):
        try:
            verify_checkpoint(folder)
        except CheckpointError as error:
            logger.warning("%s; trying the one before it", error)
            problems.append(str(error))
            continue
        return folder
    if problems:
        raise CheckpointError(
            f"every checkpoint of {run_folder} is damaged: {'; '.join(problems)}. Restore one of them, or begin this "
            "run anew on purpose with train.resume=never, or in another train.run_folder"
        )
    return None


def verify_checkpoint(checkpoint: Path) -> None:
    """Every file is there with the size and checksum of its writing, and the folder's name is that of its step.

    Raises:
        CheckpointError: naming the file that is not.
    """
    record = read_record(checkpoint)
    named = _NAME.fullmatch(checkpoint.name)
    if named and int(named.group(1)) != record.step:
        raise CheckpointError(f"{checkpoint} holds a checkpoint of step {record.step}; give it its own name again")
    for name, written in record.files.items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != written.bytes or crc32(path) != written.crc32:
            raise CheckpointError(f"{path} is missing, cut or changed since it was written; use another checkpoint")


def prune_checkpoints(
    run_folder: str | Path, keep_last: int, keep_every_steps: int | None, keep: Collection[int] = ()
) -> None:
    """Remove all but the last ``keep_last`` checkpoints, those at multiples of ``keep_every_steps`` and of ``keep``."""
    for folder in list_checkpoints(run_folder)[:-keep_last]:
        step = step_of(folder)
        if step not in keep and (not keep_every_steps or step % keep_every_steps):
            shutil.rmtree(folder)


def set_aside_later(run_folder: str | Path, step: int | None) -> Path | None:
    """Move the checkpoints after ``step`` (None: all) out of the way of a run that goes back behind them.

    Left in place they would count as the newest, so that pruning took the new ones and a resume the old line. Returns
    the folder ``checkpoints/abandoned-N`` that holds them now, or None where there were none.
    """
    later = [folder for folder in _step_folders(run_folder) if step is None or step_of(folder) > step]
    if not later:
        return None
    parent = RunFolder.at(run_folder).checkpoints
    taken = [path.name.removeprefix("abandoned-") for path in parent.glob("abandoned-*")]
    target = parent / f"abandoned-{1 + max([int(name) for name in taken if name.isdigit()], default=0)}"
    target.mkdir()
    for folder in reversed(later):  # the newest first: a kill in between leaves no line with a gap
        move(folder, target / folder.name)
    return target


def crc32(path: Path) -> int:
    """The checksum of a file, read in blocks of 4 MiB."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def _step_folders(run_folder: str | Path) -> list[Path]:
    found = [path for path in RunFolder.at(run_folder).checkpoints.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(folder.name.removeprefix("step-"))
