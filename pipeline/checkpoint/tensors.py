"""The tensors of a checkpoint: read from any file of it, written so that they are known to be on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.base.files import flush_to_disk
from pipeline.checkpoint.folder import OBJECTIVE, crc32, read_record


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The float32 state dict of a checkpoint, on the CPU."""
    return dict(read_tensors(checkpoint, "weight/"))


def read_tensors(checkpoint: Path, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor whose name begins with ``prefix``, which is taken off."""
    for name in read_record(checkpoint)["files"]:
        if name != OBJECTIVE:
            with safe_open(checkpoint / name, framework="pt") as file:
                for key in file.keys():
                    if key.startswith(prefix):
                        yield key.removeprefix(prefix), file.get_tensor(key)


def read_objective(checkpoint: Path, template: dict[str, Any]) -> dict[str, Any]:
    """τ and the memory bank, nested as ``template``, the state dict of a fresh state; what was None is None again."""
    nested: dict[str, Any] = {}
    for name, tensor in load_file(checkpoint / OBJECTIVE).items():
        *parents, last = name.split("/")
        target = nested
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = tensor
    return _with_none(nested, template)


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
    """Write to disk, read back and compare; returns ``bytes`` and ``crc32``.

    Raises:
        OSError, SafetensorError: it could not be written, or reads back as something else.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, path)
    flush_to_disk(path)
    with safe_open(path, framework="pt") as file:
        for name, tensor in tensors.items():
            if not torch.equal(_bytes(file.get_tensor(name)), _bytes(tensor)):
                raise OSError(f"{path}: {name} reads back otherwise than it was written")
    return {"bytes": path.stat().st_size, "crc32": crc32(path)}


def _with_none(nested: dict[str, Any], template: dict[str, Any]) -> dict[str, Any]:
    for name, value in template.items():
        if isinstance(value, dict):
            nested[name] = _with_none(nested.get(name, {}), value)
        else:
            nested.setdefault(name, None)
    return nested


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)  # as bytes, NaN equals NaN
