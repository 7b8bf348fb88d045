"""``checkpoint.json``: what a checkpoint says of itself, typed and under a checksum of its own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.base.border import BorderError, explain, quoted, read_object, shown

RECORD = "checkpoint.json"
FORMAT_VERSION = 2
MAX_RECORD_BYTES = 64 << 20  # assumption: ten times that of 1,000 tensors' shapes and the slices of 10,000 ranks
READABLE = (1, 2)  # format 1 has full tensors only, and no checksum, shapes and fingerprint


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or is not whole; the message names the file and what to do."""


# of a file beside the record: never a way out of the folder
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")]


class FileRecord(BaseModel):
    """Size and checksum of one file, as it was written."""

    model_config = ConfigDict(frozen=True, strict=True)

    bytes: int = Field(ge=0)
    crc32: int = Field(ge=0, lt=1 << 32)


class StateRecord(BaseModel):
    """The numbers of pipeline.training.state; kept apart, so that reading needs nothing of training."""

    model_config = ConfigDict(frozen=True, strict=True)

    step: int = Field(ge=0)
    samples_seen: int = Field(0, ge=0)
    skipped_in_a_row: int = Field(0, ge=0)
    skipped_in_all: int = Field(0, ge=0)
    seconds: float = Field(0.0, ge=0, allow_inf_nan=False)
    tracker_run_id: str | None = None


class CheckpointRecord(BaseModel):
    """The content of ``checkpoint.json``."""

    model_config = ConfigDict(frozen=True, strict=True)

    format: int
    step: int = Field(ge=0)
    state: StateRecord
    world_size: int = Field(1, ge=1)
    files: dict[FileName, FileRecord] = Field(min_length=1)
    shapes: dict[str, list[Annotated[int, Field(ge=0)]]] = {}  # of every parameter
    fingerprint: dict[str, Any] = {}  # what the run was made of; see pipeline/training/fingerprint.py

    def to_json(self) -> dict[str, Any]:
        """With the checksum of everything else."""
        content = self.model_dump(mode="json")
        return content | {"sha256": _digest(content)}


def read_record(checkpoint: Path) -> CheckpointRecord:
    """The content of ``checkpoint.json``.

    Raises:
        CheckpointError: it is not there, cannot be read, is of another format, or is not as it was written.
    """
    path = checkpoint / RECORD
    try:
        content = read_object(path, MAX_RECORD_BYTES)
    except (OSError, BorderError) as error:
        raise CheckpointError(f"{checkpoint} is no whole checkpoint: {RECORD} cannot be read ({error})") from error
    if content.get("format") not in READABLE:
        written = quoted(content.get("format"))
        raise CheckpointError(f"{checkpoint} has format {written}; this version reads {READABLE[0]} to {READABLE[-1]}")
    digest = content.pop("sha256", None)
    if content["format"] > 1 and digest != _digest(content):
        raise CheckpointError(f"{path} was changed since it was written (its checksum differs); use another checkpoint")
    try:
        record = CheckpointRecord(**content)
    except (ValidationError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({_first_problem(error)}); use another checkpoint") from error
    if record.step != record.state.step:
        raise CheckpointError(
            f"{path} names step {record.step} and a state of step {record.state.step}; it was changed since it was "
            "written, use another checkpoint"
        )
    return record


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _first_problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return explain(error, 1)
    return shown(error)
