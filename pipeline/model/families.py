"""The model families, and which of them a folder or a configuration is of."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from .clip_configuration import FGCLIP1Config
from .clip_modeling import FGCLIP1
from .clip_start import what_is_new_to_clip
from .configuration import FGCLIP2Config
from .dual_encoder import DualEncoder
from .folder import OPEN_CLIP, read_model_config
from .modeling import FGCLIP2
from .start import find_model, what_is_new

FamilyConfig: TypeAlias = FGCLIP1Config | FGCLIP2Config
OF_CLIP = ("clip", "fgclip1", OPEN_CLIP)  # model types
FAMILIES: dict[str, type[FGCLIP1] | type[FGCLIP2]] = {"fgclip1": FGCLIP1, "fgclip2": FGCLIP2}


def family_of(folder: str | Path) -> str:
    """The family that the model of a folder starts, by its configuration: ``fgclip1`` for a CLIP, else ``fgclip2``.

    Raises:
        StartError: no model there.
    """
    return "fgclip1" if read_model_config(find_model(folder)).get("model_type") in OF_CLIP else "fgclip2"


def load_trained(folder: str | Path) -> DualEncoder:
    """``load`` of the family that the folder is of."""
    return FAMILIES[family_of(folder)].load(folder)


def read_saved_config(folder: str | Path) -> FamilyConfig:
    """The configuration beside a checkpoint of this project."""
    if family_of(folder) == "fgclip1":
        return FGCLIP1Config.from_pretrained(folder)
    return FGCLIP2Config.from_pretrained(folder)


def model_of_config(config: FamilyConfig) -> DualEncoder:
    """A model with weights as its family draws them; on the meta device with none."""
    return FGCLIP1(config) if isinstance(config, FGCLIP1Config) else FGCLIP2(config)


def describe_new_parts(folder: str | Path) -> str:
    """One line: what a start from ``folder`` takes, and what it has to make.

    Raises:
        StartError: the folder holds no model.
    """
    return what_is_new_to_clip(folder) if family_of(folder) == "fgclip1" else what_is_new(folder)
