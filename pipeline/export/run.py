"""A run's checkpoint as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from pipeline.base.border import read_object
from pipeline.base.run_folder import RunFolder
from pipeline.checkpoint.folder import checkpoint_folder, find_resume
from pipeline.checkpoint.record import read_record
from pipeline.checkpoint.tensors import read_weights
from pipeline.config import Stage1Settings, dump_settings, read_saved_settings
from pipeline.config.paths import first_existing
from pipeline.data.tokenizer import load_tokenizer
from pipeline.export.folder import ExportError, export_model, model_with_weights
from pipeline.model import FGCLIP2Config
from pipeline.tracking.scores import read_scores


def export_run(run: str | Path, out: str | Path, step: int | None = None) -> Path:
    """Export a run's newest whole checkpoint, or that of optimizer step ``step``; returns the new folder.

    Raises:
        ExportError: the folder is no run's, or has no checkpoint yet, or as :func:`export_model`.
        CheckpointError: the checkpoint, or every one of them, is damaged.
    """
    folder = RunFolder.at(run)
    if not folder.exists():
        raise ExportError(f"{run} holds no {folder.settings.name}; give the folder of a run")
    checkpoint = find_resume(run, "auto" if step is None else str(checkpoint_folder(run, step)))
    if checkpoint is None:
        raise ExportError(f"{run} holds no whole checkpoint; let it reach its first one")
    settings, record = read_saved_settings(folder.settings), read_record(checkpoint)
    card = {
        "settings": dump_settings(settings),
        "run_folder": str(run),
        "scores": read_scores(folder.path),
        "step": record.step,
        "mlflow_run": record.state.tracker_run_id,
    }
    model = model_with_weights(FGCLIP2Config.from_pretrained(checkpoint), read_weights(checkpoint))
    if not settings.trains_regions:  # stage 1 trains the heads that the heads for regions start from
        model.copy_heads_for_stage2()
    return export_model(model, load_tokenizer(_tokenizer_folder(settings, folder)), out, card)


def _tokenizer_folder(settings: Stage1Settings, run: RunFolder) -> Path:
    """A relative path is meant from this folder, else from the one that training was started in."""
    started_in = read_object(run.versions).get("started_in") if run.versions.is_file() else None
    return first_existing(settings.tokenizer.path, *([Path(str(started_in))] if started_in else []))
