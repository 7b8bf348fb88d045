"""A run's checkpoint as a Hugging Face folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pipeline.base.border import read_object
from pipeline.base.run_folder import RunFolder
from pipeline.checkpoint.folder import checkpoint_folder, find_resume
from pipeline.checkpoint.record import CheckpointRecord, read_record
from pipeline.checkpoint.tensors import read_weights
from pipeline.config import Stage1Settings, dump_settings, read_saved_settings
from pipeline.config.paths import first_existing
from pipeline.data.tokenizer import load_tokenizer
from pipeline.export.folder import ExportError, export_model, model_with_weights
from pipeline.model.families import read_saved_config
from pipeline.tracking.scores import read_scores
from pipeline.tuning.lora import merged_weights


@dataclass(frozen=True)
class RunCheckpoint:
    """What an export is made of."""

    folder: RunFolder
    checkpoint: Path
    settings: Stage1Settings
    record: CheckpointRecord


def find_checkpoint(run: str | Path, step: int | None = None) -> RunCheckpoint:
    """A run's newest whole checkpoint, or that of optimizer step ``step``.

    Raises:
        ExportError: the folder is no run's, or has no checkpoint yet.
        CheckpointError: the checkpoint, or every one of them, is damaged.
    """
    folder = RunFolder.at(run)
    if not folder.exists():
        raise ExportError(f"{run} holds no {folder.settings.name}; give the folder of a run")
    checkpoint = find_resume(run, "auto" if step is None else str(checkpoint_folder(run, step)))
    if checkpoint is None:
        raise ExportError(f"{run} holds no whole checkpoint; let it reach its first one")
    return RunCheckpoint(folder, checkpoint, read_saved_settings(folder.settings), read_record(checkpoint))


def exported_weights(found: RunCheckpoint) -> dict[str, Tensor]:
    """The weights as they are exported: low-rank additions merged, after stage 1 the heads for regions copied."""
    weights = merged_weights(read_weights(found.checkpoint), found.settings.tune)
    model = model_with_weights(read_saved_config(found.checkpoint), weights)
    if not found.settings.trains_regions:  # stage 1 trains the heads that the heads for regions start from
        model.copy_heads_for_stage2()
    return model.state_dict()


def export_run(run: str | Path, out: str | Path, step: int | None = None) -> Path:
    """Export a run's newest whole checkpoint, or that of optimizer step ``step``; returns the new folder.

    Raises:
        ExportError: as :func:`find_checkpoint` and :func:`export_model`.
        CheckpointError: the checkpoint, or every one of them, is damaged.
    """
    found = find_checkpoint(run, step)
    card = {
        "settings": dump_settings(found.settings),
        "run_folder": str(run),
        "scores": read_scores(found.folder.path),
        "step": found.record.step,
        "mlflow_run": found.record.state.tracker_run_id,
    }
    model = model_with_weights(read_saved_config(found.checkpoint), exported_weights(found))
    return export_model(model, load_tokenizer(_tokenizer_folder(found.settings, found.folder)), out, card)


def _tokenizer_folder(settings: Stage1Settings, run: RunFolder) -> Path:
    """A relative path is meant from this folder, else from the one that training was started in."""
    started_in = read_object(run.versions).get("started_in") if run.versions.is_file() else None
    return first_existing(settings.tokenizer.path, *([Path(str(started_in))] if started_in else []))
