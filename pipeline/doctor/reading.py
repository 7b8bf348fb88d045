"""The evidence of a run on disk: its settings, its metrics and its newest checkpoint; nothing is trained."""

from __future__ import annotations

import json
import math
from pathlib import Path

from pipeline.base.run_folder import MODEL_CONFIG, RunFolder
from pipeline.checkpoint.folder import list_checkpoints
from pipeline.checkpoint.record import CheckpointError
from pipeline.checkpoint.tensors import CheckpointTensors
from pipeline.config import read_saved_settings
from pipeline.doctor.evidence import Evidence
from pipeline.tracking.local_log import read_curves
from pipeline.training.optimizer import PROJECTIONS


class NothingLogged(ValueError):
    """A run has no metrics yet."""


def read_evidence(run: str | Path) -> tuple[Evidence, Path | None]:
    """What the doctor sees of a run (its folder, or anything in it), and the checkpoint that was read.

    Raises:
        NoRunFolder: there is no run.
        SettingsError: its settings cannot be read.
        NothingLogged: it has no metrics.
        CheckpointError: it has checkpoints, and the newest is damaged.
        OSError: a file cannot be read.
    """
    folder = RunFolder.containing(run)
    settings = read_saved_settings(folder.settings)
    curves = read_curves(folder.path) if folder.metrics.is_file() else {}
    if not curves:
        raise NothingLogged(f"{folder.metrics} holds no metrics; let the run log its first step, then ask again")
    checkpoint = next(reversed(list_checkpoints(folder.path)), None)
    evidence = Evidence(
        settings,
        curves,
        total_steps=_total_steps(folder, settings.train.max_steps, max(steps[-1] for steps, _ in curves.values())),
        width=_width(checkpoint) if checkpoint else None,
        gradient_seen=_gradient_seen(checkpoint) if checkpoint else None,
    )
    return evidence, checkpoint


def _total_steps(folder: RunFolder, max_steps: int | None, last_logged: int) -> int | None:
    """Of the whole run, where the settings or its end say."""
    return max_steps or (last_logged if folder.final.is_dir() else None)


def _width(checkpoint: Path) -> int:
    path = checkpoint / MODEL_CONFIG
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["text_config"]["projection_size"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not say how wide the embeddings are; use another checkpoint") from error


def _gradient_seen(checkpoint: Path) -> dict[str, float]:
    """As ``Evidence.gradient_seen``."""
    found = {}
    with CheckpointTensors(checkpoint) as tensors:
        held = tensors.names("exp_avg_sq")
        for module in PROJECTIONS:
            moments = [tensors.read("exp_avg_sq", name).double() for name in held if name.startswith(f"{module}.")]
            if moments:
                count = sum(moment.numel() for moment in moments)
                found[module] = math.sqrt(sum(float(moment.sum()) for moment in moments) / count)
    return found
