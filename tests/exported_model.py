"""A tiny untrained model as a Hugging Face folder, with a tokenizer of English and Chinese."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.export.folder import export_model
from pipeline.model import FGCLIP2, preset_config
from tests.model.material import small_tokenizer


def exported_model(folder: Path, seed: int = 0) -> Path:
    """The folder, written."""
    tokenizer = small_tokenizer(folder.parent / f"{folder.name}-tokenizer")
    torch.manual_seed(seed)
    model = FGCLIP2.from_scratch(preset_config("tiny", tokenizer.vocab_size)).eval()
    export_model(model, tokenizer, folder, {})
    return folder
