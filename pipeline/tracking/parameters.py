"""What MLflow is told of a run before its first step: settings as parameters, provenance as tags."""

from __future__ import annotations

import getpass
import json
import sys
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
    """Versions, revision, host, stage, number of processes, source and description of a run; then its own tags."""
    revision = git_revision()
    tags = {f"version.{name}": version for name, version in package_versions().items()}
    tags |= describe_host() | {"stage": stage_name(settings), "run_folder": str(run_folder.resolve())}
    tags |= {"world_size": str(read_rank_info().world_size)}
    tags |= {"mlflow.source.name": sys.argv[0], "mlflow.source.type": "LOCAL", "mlflow.user": _user()}
    tags |= {"mlflow.note.content": description_of(settings, run_folder)}
    tags |= {"git_revision": revision, "mlflow.source.git.commit": revision.removesuffix("-dirty")} if revision else {}
    return tags | settings.tracking.tags


def stage_name(settings: Stage1Settings) -> str:
    """``stage1`` or ``stage2``."""
    return type(settings).__name__.removesuffix("Settings").lower()


def description_of(settings: Stage1Settings, run_folder: Path) -> str:
    """Markdown: what is trained on what, for the top of the run's page."""
    chosen, optimizer = settings.train, settings.optimizer
    length = f"{chosen.max_steps} steps" if chosen.max_steps else f"{chosen.epochs:g} epochs"
    lines = [
        f"**{stage_name(settings)}** from {settings.model.start_from or f'random weights ({settings.model.preset})'}",
        f"- data: {', '.join(settings.data.shards)}",
        f"- {length} of {chosen.global_batch_size} images, {chosen.precision}, seed {chosen.seed}, "
        f"peak learning rate {optimizer.peak_learning_rate:g}",
        f"- files: `{run_folder}`",
    ]
    own = [settings.tracking.description, ""] if settings.tracking.description else []
    return "\n".join([*own, *lines])


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user may have no name
        return "unknown"
