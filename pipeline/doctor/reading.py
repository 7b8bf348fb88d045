"""The evidence of a run on disk: its settings, its metrics and its newest checkpoint; nothing is trained."""

from __future__ import annotations

import math
from pathlib import Path

from pipeline.base.run_folder import RunFolder
from pipeline.checkpoint.folder import list_checkpoints
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
    width, gradient_seen = _read_checkpoint(checkpoint) if checkpoint else (None, None)
    evidence = Evidence(
        settings,
        curves,
        total_steps=_total_steps(folder, settings.train.max_steps, max(steps[-1] for steps, _ in curves.values())),
        width=width,
        gradient_seen=gradient_seen,
    )
    return evidence, checkpoint


def _total_steps(folder: RunFolder, max_steps: int | None, last_logged: int) -> int | None:
    """Of the whole run, where the settings or its end say."""
    return max_steps or (last_logged if folder.final.is_dir() else None)


def _read_checkpoint(checkpoint: Path) -> tuple[int | None, dict[str, float]]:
    """The width of the embeddings, where a projection says it, and ``Evidence.gradient_seen``."""
    found = {}
    with CheckpointTensors(checkpoint) as tensors:
        width = tensors.shapes.get("weight/longtext_head.weight", (None,))[0]
        held = tensors.names("exp_avg_sq")
        for module in PROJECTIONS:
            moments = [tensors.read("exp_avg_sq", name).double() for name in held if name.startswith(f"{module}.")]
            if moments:
                count = sum(moment.numel() for moment in moments)
                found[module] = math.sqrt(sum(float(moment.sum()) for moment in moments) / count)
    return width, found
