"""Which model a run trains and what it starts from: the settings ``model``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.group import Group


class ModelSettings(Group):
    """Which model, and what it starts from."""

    family: Literal["fgclip2", "fgclip1"] = "fgclip2"  # fgclip1: CLIP's towers (docs/clip.md)
    # A name in PRESETS or CLIP_PRESETS of pipeline.model; ignored when start_from holds a config.
    preset: str = "base"
    # None: random weights. Else a local folder: a run's, or of transformers a SigLIP 2 or FG-CLIP 2 (fgclip1: a CLIP).
    start_from: str | None = None
    # Of fgclip1's roi_projection in stage 2. copy: as the start holds it, after stage 1 and of a CLIP a copy of
    # visual_projection; random: drawn anew. Both train; frozen: the copy, which does not.
    region_projection: Literal["copy", "random", "frozen"] = "copy"
    # Of stage 2 with data.clip_frames: what a region of a clip is. transformer: the mean of its features over the
    # frames where it is, corrected by a transformer that knows their order; mean: the mean alone.
    region_frames: Literal["transformer", "mean"] = "transformer"
    temporal_layers: int = Field(2, ge=1, le=64)  # of that transformer; a start that has one keeps its own
    # Recompute layers in the backward instead of keeping their activations. auto: at each patch budget the least that
    # fits into the device's memory by estimate.
    gradient_checkpointing: bool | Literal["auto"] = False
    checkpoint_every_layers: int = Field(1, ge=1)  # with true: each n-th layer
    checkpoint_from_patches: int = Field(0, ge=0)  # with true: at this patch budget and above
    compile: bool = False  # fused kernels, made when a layer first meets a shape; where no compiler is, a line says so

    @model_validator(mode="after")
    def _of_the_family(self) -> ModelSettings:
        if self.family == "fgclip2" and self.region_projection != "copy":
            raise ValueError(
                f"region_projection is {self.region_projection} and family fgclip2, which has no such projection; set "
                "model.family=fgclip1 or leave it out"
            )
        if self.family == "fgclip1" and self.gradient_checkpointing == "auto":
            raise ValueError(
                "gradient_checkpointing is auto and family fgclip1, whose memory nothing estimates; set "
                "model.gradient_checkpointing to true or false"
            )
        return self
