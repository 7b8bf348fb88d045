"""What MLflow is told of a run before its first step: settings as parameters, provenance as tags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.base.provenance import describe_host, git_revision, package_versions
from pipeline.base.ranks import read_rank_info
from pipeline.config import Group, Stage1Settings, flatten

MAX_VALUE_LENGTH = 6000  # characters of a parameter; mlflow.utils.validation.MAX_PARAM_VAL_LENGTH of 3.17


def settings_as_text(settings: Group) -> dict[str, str]:
    """``{"group.name": text}`` of every setting, each cut to what a tracking store keeps."""
    return {name: shorten(value_as_text(value)) for name, value in flatten(settings).items()}


def value_as_text(value: Any) -> str:
    """Lists and mappings as JSON, in their own script; everything else as ``str`` gives it."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else str(value)


def shorten(text: str, limit: int = MAX_VALUE_LENGTH) -> str:
    """``text`` cut to ``limit`` characters, the cut marked."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def run_tags(settings: Stage1Settings, run_folder: Path) -> dict[str, str]:
    """Versions, revision, host, stage and number of processes of a run."""
    revision = git_revision()
    tags = {f"version.{name}": version for name, version in package_versions().items()}
    tags |= describe_host() | {"stage": type(settings).__name__.removesuffix("Settings").lower()}
    tags |= {"run_folder": str(run_folder.resolve()), "world_size": str(read_rank_info().world_size)}
    return tags | ({"git_revision": revision, "mlflow.source.git.commit": revision} if revision else {})
