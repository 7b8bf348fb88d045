"""Checkpoints: the record as a disk may damage it, and files whose checksums are right and whose content is not."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.checkpoint.folder import OBJECTIVE, checkpoint_folder, crc32, find_resume
from pipeline.checkpoint.record import RECORD, CheckpointError, CheckpointRecord, StateRecord, read_record
from pipeline.checkpoint.tensors import CheckpointTensors, read_objective, write_tensors
from tests.border.damage import Damage, damage_bytes, damage_document
from tests.border.formats import Format

STEPS = (3, 6)
SLICES = ("tensors-00000-of-00002.safetensors", "tensors-00001-of-00002.safetensors")
TEMPLATE = {"margin": {"value": torch.zeros(1)}, "bank": {"rows": None}}
SEALED = "sealed"  # beside the run: a copy of its last checkpoint, whose checksums are made right again


def write_checkpoint(folder: Path, step: int) -> None:
    folder.mkdir(parents=True)
    flat = torch.arange(12.0) + step
    files: dict[str, dict[str, Tensor]] = {OBJECTIVE: {"margin/value": torch.zeros(1)}, SLICES[0]: {}, SLICES[1]: {}}
    for kind in ("weight", "exp_avg", "exp_avg_sq"):
        files[SLICES[0]] |= {f"{kind}/a@0": flat[:5], f"{kind}/b": flat[:4].reshape(2, 2)}
        files[SLICES[1]] |= {f"{kind}/a@5": flat[5:]}
    written = {name: write_tensors(folder / name, tensors) for name, tensors in files.items()}
    fingerprint = {"stage": "stage1", "tokenizer": "x", "settings": {"train.seed": 1, "data.shards": ["数据"]}}
    record = CheckpointRecord(
        format=2,
        step=step,
        state=StateRecord(step=step, samples_seen=8 * step),
        world_size=2,
        files=written,
        shapes={"a": [3, 4], "b": [2, 2]},
        fingerprint=fingerprint,
    )
    (folder / RECORD).write_text(json.dumps(record.to_json(), ensure_ascii=False), encoding="utf-8")


def make_checkpoints(folder: Path) -> None:
    for step in STEPS:
        write_checkpoint(checkpoint_folder(folder, step), step)
    write_checkpoint(folder / SEALED, STEPS[-1])


def damage_checkpoint(rng: random.Random, base: Path) -> Damage:
    place = rng.choice((checkpoint_folder(base, STEPS[-1]), base / SEALED))
    file = rng.choice((place / RECORD, place / RECORD, place / SLICES[0], place / SLICES[1], place / OBJECTIVE))
    name = str(file.relative_to(base))
    if file.name != RECORD and rng.random() < 0.3:
        return damage_bytes(rng, name)
    return damage_document(rng, name, file.read_bytes())


def seal(folder: Path) -> None:
    """Sizes and checksums as they would be if what is there had been written; a record that is none stays."""
    path = folder / RECORD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for name, entry in content["files"].items():
            entry |= {"bytes": (folder / name).stat().st_size, "crc32": crc32(folder / name)}
        content.pop("sha256", None)
        text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        content["sha256"] = hashlib.sha256(text.encode("ascii")).hexdigest()
        path.write_text(json.dumps(content), encoding="utf-8")
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        return


def read_checkpoints(folder: Path) -> dict[str, Any]:
    """As a resume does; then the copy, whose checksums do not give the damage away."""
    found = find_resume(folder, "auto")
    assert found is not None
    tensors, _, _ = read_all(found)
    seal(folder / SEALED)
    find_resume(folder, str(folder / SEALED))
    return {"step": read_record(found).step, "weight": tensors["weight/a"], "sealed": read_all(folder / SEALED)}


def read_all(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any], CheckpointRecord]:
    with CheckpointTensors(checkpoint) as tensors:
        read = {f"{kind}/{name}": tensors.read(kind, name) for kind in KINDS for name in tensors.names(kind)}
    return read, read_objective(checkpoint, TEMPLATE), read_record(checkpoint)


KINDS = ("weight", "exp_avg", "exp_avg_sq")


def check_checkpoints(found: dict[str, Any]) -> str | None:
    if not torch.equal(found["weight"], (torch.arange(12.0) + found["step"]).reshape(3, 4)):
        return f"the weight {found['weight']} of step {found['step']}"
    tensors, objective, record = found["sealed"]
    for name, tensor in tensors.items():
        shape = record.shapes.get(name.partition("/")[2])
        if shape is not None and list(tensor.shape) != shape:
            return f"{name} has shape {list(tensor.shape)}, the record {shape}"
    return None if set(objective) >= set(TEMPLATE) else f"the objective's state has {sorted(objective)}"


FORMATS = {
    "checkpoint": Format(
        "checkpoints", make_checkpoints, damage_checkpoint, read_checkpoints, (CheckpointError,), check_checkpoints
    )
}
