"""FG-CLIP 2 on transformers' Siglip2 layers."""

from .configuration import PRESETS, FGCLIP2Config, preset_config
from .embeddings import Embeddings, Scales
from .modeling import FGCLIP2

# The modules that an exported Hugging Face folder carries, so that transformers alone runs the model. They import
# nothing of the project but each other.
EXPORTED_MODULES = (
    "attention",
    "checkpointing",
    "configuration",
    "embeddings",
    "folder",
    "inference",
    "layout",
    "modeling",
    "positions",
    "regions",
    "scratch",
    "start",
    "towers",
)

__all__ = ["EXPORTED_MODULES", "PRESETS", "FGCLIP2", "Embeddings", "FGCLIP2Config", "Scales", "preset_config"]
