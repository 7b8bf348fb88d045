"""A checkpoint's folder: its name, its record, whether it is whole, and which one a run goes on from.

A checkpoint is a folder ``step-00000120`` of safetensors files: every parameter and its two Adam moments in full,
under the names ``weight/NAME``, ``exp_avg/NAME`` and ``exp_avg_sq/NAME``, spread over the ranks that wrote them, and
``checkpoint.json`` with the training state, sizes and checksums. Full tensors, not ZeRO's partitions, are what makes
another world size or stage exact; no pickle is read or written. The folder is written aside, read back, and renamed
when every rank has succeeded (pipeline/training/checkpoint.py).
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

from pipeline.base.run_folder import RunFolder

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
RECORD = "checkpoint.json"
OBJECTIVE = "objective.safetensors"  # τ and the memory bank
_NAME = re.compile(r"step-(\d+)")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or is not whole; the message names the file and what to do."""


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


def read_record(checkpoint: Path) -> dict[str, Any]:
    """The content of ``checkpoint.json``.

    Raises:
        CheckpointError: it is not there, cannot be read, or is of another format.
    """
    try:
        record = json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoint} is no whole checkpoint: {RECORD} cannot be read ({error})") from error
    if record.get("format") != FORMAT_VERSION:
        raise CheckpointError(f"{checkpoint} has format {record.get('format')}; this version reads {FORMAT_VERSION}")
    return record


def verify_checkpoint(checkpoint: Path) -> None:
    """Every file is there with the size and checksum of its writing.

    Raises:
        CheckpointError: naming the file that is not.
    """
    for name, written in read_record(checkpoint)["files"].items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != written["bytes"] or crc32(path) != written["crc32"]:
            raise CheckpointError(f"{path} is missing, cut or changed since it was written; use another checkpoint")


def prune_checkpoints(run_folder: str | Path, keep_last: int, keep_every_steps: int | None) -> None:
    """Remove all but the last ``keep_last`` checkpoints and those at multiples of ``keep_every_steps``."""
    for folder in list_checkpoints(run_folder)[:-keep_last]:
        if not keep_every_steps or _step_of(folder) % keep_every_steps:
            shutil.rmtree(folder)


def crc32(path: Path) -> int:
    """The checksum of a file, read in blocks of 4 MiB."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def _step_folders(run_folder: str | Path) -> list[Path]:
    found = [path for path in RunFolder.at(run_folder).checkpoints.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=_step_of)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))
