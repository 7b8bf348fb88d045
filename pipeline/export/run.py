"""A run's checkpoint as a Hugging Face folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.base.border import read_object
from pipeline.base.languages import in_order
from pipeline.base.run_folder import RunFolder
from pipeline.checkpoint.folder import checkpoint_folder, find_resume
from pipeline.checkpoint.record import CheckpointRecord, read_record
from pipeline.checkpoint.tensors import read_weights
from pipeline.config import DataSettings, Stage1Settings, dump_settings, read_saved_settings
from pipeline.config.paths import first_existing
from pipeline.data.manifest import MANIFEST_NAME, load_manifest
from pipeline.data.tokenizer import Tokenizer, load_tokenizer
from pipeline.export.folder import ExportError, export_model, model_with_weights
from pipeline.model import FGCLIP2, DualEncoder
from pipeline.model.families import read_saved_config
from pipeline.tracking.scores import read_facts, read_scores
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
    return exported_model(found).state_dict()


def exported_model(found: RunCheckpoint) -> DualEncoder:
    """The model of :func:`exported_weights`, in evaluation mode."""
    weights = merged_weights(read_weights(found.checkpoint), found.settings.tune)
    model = model_with_weights(read_saved_config(found.checkpoint), weights)
    if not found.settings.trains_regions:  # stage 1 trains the heads that the heads for regions start from
        model.copy_heads_for_stage2()
    return model


def of_fgclip2(model: DualEncoder, form: str) -> FGCLIP2:
    """``model``, which must be of the family that ``form`` has a place for.

    Raises:
        ExportError: it is of another.
    """
    if not isinstance(model, FGCLIP2):
        raise ExportError(f"--as {form} is a form of FG-CLIP 2; the run is of family fgclip1: export it without --as")
    return model


def card_of(found: RunCheckpoint) -> dict[str, Any]:
    """What the model card is made of."""
    return {
        "settings": dump_settings(found.settings),
        "languages": languages_of(found.settings.data),
        "run_folder": str(found.folder.path),
        "scores": read_scores(found.folder.path),
        "score_facts": read_facts(found.folder.path),
        "step": found.record.step,
        "mlflow_run": found.record.state.tracker_run_id,
    }


def languages_of(data: DataSettings) -> list[str] | None:
    """The languages of a run's captions, by the manifests of its shards; None where those are not on this machine."""
    if data.streaming:
        return None
    found: set[str] = set()
    for folder in data.shards:
        if not (Path(folder) / MANIFEST_NAME).is_file():
            return None
        manifest = load_manifest(folder)
        per_language = manifest.counts.sum(axis=(0, 2))
        found |= {name for name, count in zip(manifest.languages, per_language.tolist(), strict=True) if count}
    return [language for language in in_order(found) if language in found]


def export_run(run: str | Path, out: str | Path, step: int | None = None) -> Path:
    """Export a run's newest whole checkpoint, or that of optimizer step ``step``; returns the new folder.

    Raises:
        ExportError: as :func:`find_checkpoint` and :func:`export_model`.
        CheckpointError: the checkpoint, or every one of them, is damaged.
    """
    found = find_checkpoint(run, step)
    return export_model(exported_model(found), tokenizer_of(found), out, card_of(found))


def tokenizer_of(found: RunCheckpoint) -> Tokenizer:
    """The run's tokenizer. A relative path is meant from this folder, else from where training was started."""
    versions = found.folder.versions
    started_in = read_object(versions).get("started_in") if versions.is_file() else None
    others = [Path(str(started_in))] if started_in else []
    return load_tokenizer(first_existing(found.settings.tokenizer.path, *others))
