"""The tensors of a checkpoint: slices written in one pass, read back, and put together again.

A parameter's weight and moments lie in one file in full, under ``weight/NAME``, or in several as flat slices
``weight/NAME@START``, each with the numbers from START on. Files are safetensors; readers map them into memory, so a
host reads each page from disk once, however many of its ranks ask for it, and only the part that is asked for.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from pipeline.base.border import quoted, shown
from pipeline.checkpoint.folder import OBJECTIVE, crc32
from pipeline.checkpoint.record import CheckpointError, read_record

BLOCK_BYTES = 1 << 22
_NAMES = {
    torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class _Slice:
    start: int
    count: int
    file: Path
    key: str


class CheckpointTensors:
    """Reads the weights and moments of a checkpoint, whole or in part. Use as a context manager."""

    def __init__(self, checkpoint: Path) -> None:
        """
        Raises:
            CheckpointError: a file cannot be read, or a tensor is not there as a whole.
        """
        self.checkpoint, record = checkpoint, read_record(checkpoint)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._slices: dict[str, list[_Slice]] = {}
        self._open: dict[Path, Any] = {}
        for name in record.files:
            if name != OBJECTIVE and name.endswith(".safetensors"):
                self._index(checkpoint / name)
        for name, slices in self._slices.items():
            _, _, parameter = name.partition("/")
            if parameter in record.shapes:
                self.shapes[name] = tuple(record.shapes[parameter])
            slices.sort(key=lambda one: one.start)
            self._check(name, slices)
        if missing := [name for name in record.shapes if f"weight/{name}" not in self._slices]:
            raise CheckpointError(
                f"{checkpoint} has no weight of {shown(', '.join(missing[:5]))}; use another checkpoint"
            )

    def __enter__(self) -> CheckpointTensors:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()

    def names(self, kind: str) -> list[str]:
        """The parameters that have a ``weight``, ``exp_avg`` or ``exp_avg_sq`` here."""
        return [name.removeprefix(f"{kind}/") for name in self._slices if name.startswith(f"{kind}/")]

    def read(self, kind: str, name: str) -> Tensor:
        """One tensor in full, on the CPU."""
        shape = self.shapes[f"{kind}/{name}"]
        return self.read_part(kind, name, 0, prod(shape)).reshape(shape)

    def read_part(self, kind: str, name: str, start: int, end: int) -> Tensor:
        """The numbers from ``start`` to ``end`` of a flattened tensor, on the CPU; nothing else is read."""
        parts = []
        for one in self._slices[f"{kind}/{name}"]:
            low, high = max(start, one.start), min(end, one.start + one.count)
            if low < high:
                parts.append(self._read(one, low - one.start, high - one.start))
        if not parts:  # a rank may hold nothing of a small parameter
            return torch.empty(0)
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _read(self, one: _Slice, low: int, high: int) -> Tensor:
        file = self._open.setdefault(one.file, None)
        if file is None:
            file = self._open[one.file] = safe_open(one.file, framework="pt")
        if "@" in one.key:
            return file.get_slice(one.key)[low:high]
        return file.get_tensor(one.key).reshape(-1)[low:high]

    def _index(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():
                    name, at, start = key.partition("@")
                    shape = tuple(file.get_slice(key).get_shape())
                    if not at:
                        self.shapes[name] = shape
                    one = _Slice(int(start or 0), prod(shape), path, key)
                    self._slices.setdefault(name, []).append(one)
        except (OSError, SafetensorError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read ({shown(error)}); use another checkpoint") from error

    def _check(self, name: str, slices: list[_Slice]) -> None:
        """Slices without gap or overlap, as many numbers as the shape has."""
        expected = 0
        for one in slices:
            if one.start != expected:
                break
            expected += one.count
        shape = self.shapes.get(name)
        if shape is None or expected != prod(shape) or expected != sum(one.count for one in slices):
            raise CheckpointError(
                f"{self.checkpoint}: {shown(name)} is there in part only ({expected} numbers of shape "
                f"{quoted(shape)}); use another checkpoint"
            )


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The float32 state dict of a checkpoint, on the CPU."""
    with CheckpointTensors(checkpoint) as tensors:
        return {name: tensors.read("weight", name) for name in tensors.names("weight")}


def read_tensors(checkpoint: Path, kind: str) -> Iterator[tuple[str, Tensor]]:
    """Every parameter's ``weight``, ``exp_avg`` or ``exp_avg_sq``, in full, one after another."""
    with CheckpointTensors(checkpoint) as tensors:
        for name in tensors.names(kind):
            yield name, tensors.read(kind, name)


def read_objective(checkpoint: Path, template: dict[str, Any]) -> dict[str, Any]:
    """τ and the memory bank, nested as ``template``, the state dict of a fresh state; what was None is None again.

    Raises:
        CheckpointError: the file cannot be read.
    """
    nested: dict[str, Any] = {}
    try:
        loaded = load_file(checkpoint / OBJECTIVE)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{checkpoint / OBJECTIVE} cannot be read ({shown(error)}); use another checkpoint"
        ) from error
    for name, tensor in loaded.items():
        *parents, last = name.split("/")
        target = nested
        for parent in parents:
            target = _group(target.setdefault(parent, {}), name, checkpoint)
        target[last] = tensor
    return _with_none(nested, template, checkpoint)


def flat_tensors(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Nested mappings of tensors as one, ``a/b`` for ``{a: {b: …}}``; None is left out."""
    flat: dict[str, Tensor] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(flat_tensors(value, f"{prefix}{name}/"))
        elif value is not None:
            flat[prefix + name] = value
    return flat


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Write tensors of the CPU as a safetensors file to disk, read it back and compare; ``bytes`` and ``crc32``.

    The library's own writer would copy every tensor once more; this one passes their memory on in blocks, which also
    lets other threads run.

    Raises:
        OSError: it could not be written, or reads back as something else.
    """
    header: dict[str, dict[str, Any]] = {}
    offset = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        offsets = [offset, offset + size]
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    checksum = 0
    with open(path, "wb", buffering=0) as file:
        blocks = [memoryview(len(text).to_bytes(8, "little") + text)]
        blocks += [memoryview(_bytes(tensor).numpy()) for tensor in tensors.values()]
        for block in blocks:
            for start in range(0, len(block), BLOCK_BYTES):
                part = block[start : start + BLOCK_BYTES]
                checksum = zlib.crc32(part, checksum)
                _write_all(file.fileno(), part)
        os.fsync(file.fileno())
    size = 8 + len(text) + offset
    if path.stat().st_size != size or crc32(path) != checksum:
        raise OSError(f"{path} reads back otherwise than it was written")
    return {"bytes": size, "crc32": checksum}


def _write_all(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]


def _group(value: Any, name: str, checkpoint: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{checkpoint / OBJECTIVE} has a tensor where {shown(name)} has a group; use another checkpoint"
        )
    return value


def _with_none(nested: dict[str, Any], template: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    for name, value in template.items():
        if isinstance(value, dict):
            nested[name] = _with_none(_group(nested.get(name, {}), name, checkpoint), value, checkpoint)
        else:
            nested.setdefault(name, None)
    return nested


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
