"""Where a result comes from: versions of packages, revision of the code, the host."""

from __future__ import annotations

import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "torch",
    "deepspeed",
    "transformers",
    "webdataset",
    "mlflow",
    "numpy",
    "pillow",
    "pyarrow",
    "sentencepiece",
    "pydantic",
    "safetensors",
)
PROJECT = Path(__file__).resolve().parents[2]


def package_versions() -> dict[str, str]:
    """Version of Python and of each package a result could depend on; "absent" where one is not installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


def git_revision(folder: Path = PROJECT) -> str | None:
    """Commit of ``folder``, with "-dirty" where tracked files differ from it; None outside a git checkout."""
    try:
        revision = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return revision + ("-dirty" if changed else "")


def describe_host() -> dict[str, str]:
    """Name, operating system and processor of this host."""
    return {"host": socket.gethostname(), "platform": platform.platform(), "machine": platform.machine()}


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20, encoding="utf-8"
    )
    return done.stdout.strip()
