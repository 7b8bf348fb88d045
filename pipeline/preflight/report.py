"""What one host says of itself, as a record that travels as one line of JSON."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.base.border import one_line
from pipeline.base.provenance import git_revision, package_versions
from pipeline.data.manifest import IndexProblem, load_manifest

SAMPLED_SHARDS = 500  # that are looked at; a million would take longer than the limit of a host
DECODE_SECONDS = 2.0


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
    images_per_second: float | None = None  # that all cores decode from the first local folder


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
            if report.images_per_second is None and "://" not in folder:
                report.images_per_second = _decode_rate(folder)
        except (IndexProblem, OSError) as error:
            report.shard_errors[folder] = one_line(error)
    return report


def check_shards(folder: str) -> tuple[str, int]:
    """Digest of a folder's manifest, and its number of samples, after a sample of its shards was found with their size.

    Raises:
        IndexProblem: no folder, no manifest, or a shard that is missing or of another size.
        OSError: a shard cannot be read.
    """
    manifest = load_manifest(folder)
    if "://" not in folder:
        for number in sampled(len(manifest.shards)):
            path, size = Path(folder) / manifest.shards[number], int(manifest.sizes[number])
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


def sampled(count: int, most: int = SAMPLED_SHARDS) -> list[int]:
    """At most ``most`` numbers below ``count``, the first and the last among them, evenly spread."""
    if count <= most:
        return list(range(count))
    return sorted({round(number * (count - 1) / (most - 1)) for number in range(most)})


def _decode_rate(folder: str) -> float:
    from pipeline.preflight.decoding import images_per_second  # a loader's libraries; --help must stay quick

    return images_per_second(load_manifest(folder), DECODE_SECONDS)


def free_gigabytes(folder: str) -> float:
    """Free space where ``folder`` is or would be made."""
    path = Path(folder).resolve()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free / 1e9


def _accelerators() -> list[str]:
    import torch  # seconds that --help does without

    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def _address() -> str | None:
    """The address under which DeepSpeed's launcher would make this host the master: the first of ``hostname -I``."""
    try:
        done = subprocess.run(["hostname", "-I"], capture_output=True, text=True, timeout=10)
    except OSError:
        return None
    return next(iter(done.stdout.split()), None)
