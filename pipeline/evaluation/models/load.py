"""Any model that can be evaluated, from its folder.

A run of ours of either family or its ONNX files, a folder of a public FG-CLIP 2 checkpoint, or a SigLIP 2 (of any or
of fixed resolution) or CLIP folder of transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.base.border import shown
from pipeline.base.constants import PATCH_BUDGETS
from pipeline.base.run_folder import MODEL_CONFIG, NoRunFolder, RunFolder
from pipeline.config import read_saved_values
from pipeline.data.tokenizer import load_tokenizer
from pipeline.evaluation.models.base import EvaluationModel
from pipeline.evaluation.models.clip import CLIPEvaluation
from pipeline.evaluation.models.onnx import ONNXEvaluation
from pipeline.evaluation.models.siglip import SiglipEvaluation
from pipeline.evaluation.models.trained import evaluation_of
from pipeline.evaluation.results import EvaluationError
from pipeline.model.families import FAMILIES, family_of
from pipeline.model.folder import read_object
from pipeline.model.onnx_runtime import DESCRIPTION

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def run_folder_of(checkpoint: str | Path) -> RunFolder | None:
    """The run that made ``checkpoint`` (the run's folder, or a folder in it); None without one."""
    try:
        return RunFolder.containing(checkpoint)
    except NoRunFolder:
        return None


def load_model(checkpoint: str | Path, *, device: str = "cpu", dtype: str = "float32") -> EvaluationModel:
    """The model of a folder, by what its config.json says it is.

    Patch budgets are those the run was trained with (settings.yaml beside the checkpoint), else the method's.

    Raises:
        EvaluationError: no config.json there, or a model type that no task can use.
        StartError, TokenizerError: its files are damaged or do not fit each other.
    """
    folder = Path(checkpoint)
    if (folder / DESCRIPTION).is_file():
        return ONNXEvaluation(folder)
    if not (folder / MODEL_CONFIG).is_file() and (RunFolder.at(folder).final / MODEL_CONFIG).is_file():
        folder = RunFolder.at(folder).final
    if not (folder / MODEL_CONFIG).is_file():
        raise EvaluationError(
            f"{checkpoint} holds no {MODEL_CONFIG}; give a run's folder or a Hugging Face model folder"
        )
    config = read_object(folder / MODEL_CONFIG)
    kind = shown(config.get("model_type", ""))
    if kind == "clip":
        return CLIPEvaluation.load(folder, device=device, dtype=DTYPES[dtype])
    if kind == "siglip":
        return SiglipEvaluation.load(folder, device=device, dtype=DTYPES[dtype])
    text = config.get("text_config")
    is_ours = kind.startswith(("fgclip1", "fgclip2")) or (isinstance(text, dict) and "longtext_len" in text)
    if not is_ours and kind != "siglip2":
        raise EvaluationError(
            f"{folder} holds a model of type {kind!r}; evaluation reads FG-CLIP 2 (ours and the public ones), our "
            "FG-CLIP 1, siglip2, siglip and clip"
        )
    module = FAMILIES[family_of(folder)].load(folder, device=device, dtype=DTYPES[dtype])
    trained = _data_settings(folder)
    notes = {}
    if kind == "siglip2":
        notes = {"heads": "a SigLIP 2 has no dense, long and region heads: copies of its own heads take their place"}
    return evaluation_of(
        module,
        load_tokenizer(folder),
        patch_budgets=trained.get("patch_budgets") or module.patch_budgets or PATCH_BUDGETS,
        name=str(checkpoint),
        prefixes=trained.get("short_caption_prefix"),
        notes=notes,
    )


def _data_settings(folder: Path) -> dict[str, Any]:
    """The group ``data`` of the run that made the checkpoint; {} without one."""
    run = run_folder_of(folder)
    if run is None:
        return {}
    return read_saved_values(run.settings).get("data") or {}
