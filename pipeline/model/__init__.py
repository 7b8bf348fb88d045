"""FG-CLIP 2 on transformers' Siglip2 layers."""

from .configuration import PRESETS, FGCLIP2Config, preset_config
from .embeddings import Embeddings, Scales
from .modeling import FGCLIP2

__all__ = ["PRESETS", "FGCLIP2", "Embeddings", "FGCLIP2Config", "Scales", "preset_config"]
