"""What a run is made of: its settings as flat text, the versions of its packages, the revision of its code."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.config import Group, flatten

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
MAX_VALUE_LENGTH = 6000  # characters of a parameter; mlflow.utils.validation.MAX_PARAM_VAL_LENGTH of 3.17


class RefusedError(ValueError):
    """A tracking store will never take this value, however often it is sent."""


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


def settings_as_text(settings: Group) -> dict[str, str]:
    """``{"group.name": text}`` of every setting, each cut to what a tracking store keeps."""
    return {name: shorten(value_as_text(value)) for name, value in flatten(settings).items()}


def value_as_text(value: Any) -> str:
    """Lists and mappings as JSON, in their own script; everything else as ``str`` gives it."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else str(value)


def shorten(text: str, limit: int = MAX_VALUE_LENGTH) -> str:
    """``text`` cut to ``limit`` characters, the cut marked."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def describe_host() -> dict[str, str]:
    """Name, operating system and processor of this host."""
    return {"host": socket.gethostname(), "platform": platform.platform(), "machine": platform.machine()}


def run_tags(settings: Any, run_folder: Path) -> dict[str, str]:
    """Versions, revision, host, stage and number of processes of a run."""
    revision = git_revision()
    tags = {f"version.{name}": version for name, version in package_versions().items()}
    tags |= describe_host() | {"stage": type(settings).__name__.removesuffix("Settings").lower()}
    tags |= {"run_folder": str(run_folder.resolve()), "world_size": os.environ.get("WORLD_SIZE", "1")}
    return tags | ({"git_revision": revision, "mlflow.source.git.commit": revision} if revision else {})


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20, encoding="utf-8"
    )
    return done.stdout.strip()
