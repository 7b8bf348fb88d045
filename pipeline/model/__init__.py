"""FG-CLIP 2 on transformers' Siglip2 layers, and FG-CLIP 1 on CLIP's towers."""

from .clip_configuration import FGCLIP1Config, clip_preset_config
from .clip_modeling import FGCLIP1
from .configuration import PRESETS, FGCLIP2Config, preset_config
from .dual_encoder import DualEncoder
from .embeddings import Embeddings, Scales
from .families import FamilyConfig
from .modeling import FGCLIP2

# The modules that an exported Hugging Face folder carries, so that transformers alone runs the model. They import
# nothing of the project but each other.
EXPORTED_MODULES = (
    "attention",
    "checkpointing",
    "configuration",
    "contrast",
    "dual_encoder",
    "embeddings",
    "folder",
    "inference",
    "layout",
    "modeling",
    "positions",
    "regions",
    "scratch",
    "start",
    "temporal",
    "towers",
    "video",
)
EXPORTED_CLIP_MODULES = (
    *EXPORTED_MODULES,
    "clip_configuration",
    "clip_modeling",
    "clip_start",
    "clip_towers",
    "open_clip_start",
)

__all__ = [
    "EXPORTED_CLIP_MODULES",
    "EXPORTED_MODULES",
    "FGCLIP1",
    "FGCLIP2",
    "PRESETS",
    "DualEncoder",
    "Embeddings",
    "FGCLIP1Config",
    "FGCLIP2Config",
    "FamilyConfig",
    "Scales",
    "clip_preset_config",
    "preset_config",
]
