"""What one host says of itself, as a record that travels as one line of JSON."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.base.provenance import git_revision, package_versions
from pipeline.data.manifest import IndexProblem, load_manifest


@dataclass
class HostReport:
    """Facts of one host."""

    host: str
    python: str
    versions: dict[str, str]
    revision: str | None
    accelerators: list[str]
    address: str | None
    free_gigabytes: float
    shards: dict[str, str] = field(default_factory=dict)  # folder -> digest of its manifest
    shard_errors: dict[str, str] = field(default_factory=dict)
    num_samples: int = 0


def make_report(run_folder: str, shard_folders: Sequence[str]) -> HostReport:
    """Look at this host. Never raises for what it finds: errors of shards are part of the record."""
    report = HostReport(
        host=socket.gethostname(),
        python=sys.executable,
        versions=package_versions(),
        revision=git_revision(),
        accelerators=_accelerators(),
        address=_address(),
        free_gigabytes=free_gigabytes(run_folder),
    )
    for folder in shard_folders:
        try:
            report.shards[folder], num_samples = check_shards(folder)
            report.num_samples += num_samples
        except (IndexProblem, OSError) as error:
            report.shard_errors[folder] = " ".join(str(error).split())
    return report


def check_shards(folder: str) -> tuple[str, int]:
    """Digest of a folder's manifest, and its number of samples, after every shard was found with its size.

    Raises:
        IndexProblem: no folder, no manifest, or a shard that is missing or of another size.
        OSError: a shard cannot be read.
    """
    manifest = load_manifest(folder)
    if "://" not in folder:
        for name, size in zip(manifest.shards, manifest.sizes.tolist(), strict=True):
            path = Path(folder) / name
            if not path.is_file():
                raise IndexProblem(f"shard {path} of the manifest is not there; copy it, or index the folder again")
            if path.stat().st_size != size:
                raise IndexProblem(
                    f"shard {path} has {path.stat().st_size} bytes, its manifest says {size}; copy it again"
                )
        for name in {manifest.shards[0], manifest.shards[-1]} if manifest.shards else set():
            with open(Path(folder) / name, "rb") as file:
                file.read(512)  # a tar's first header: the file can be read, not only listed
    return manifest.digest[:12], int(manifest.samples.sum())


def free_gigabytes(folder: str) -> float:
    """Free space where ``folder`` is or would be made."""
    path = Path(folder).resolve()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free / 1e9


def _accelerators() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def _address() -> str | None:
    """The address under which DeepSpeed's launcher would make this host the master: the first of ``hostname -I``."""
    try:
        done = subprocess.run(["hostname", "-I"], capture_output=True, text=True, timeout=10)
    except OSError:
        return None
    return next(iter(done.stdout.split()), None)
