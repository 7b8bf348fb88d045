"""Options of segmentation without training."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from pipeline.evaluation.options.base import RENAMED, CalibrationOptions, ClassNameOptions


class SegmentationOptions(ClassNameOptions, CalibrationOptions):
    """Classes of patches."""

    format: str = Field("auto", description="layout of the folder (default: by its form); see docs/inference.md")
    split: str = Field("test", description="of sets that list several")
    max_images: int | None = Field(None, ge=1, description="the first so many images")
    window: int | None = Field(None, ge=1, description="side of the sliding window in pixels")
    stride: int | None = Field(None, ge=1, description="of the window in pixels")
    short_side: int | None = Field(None, ge=1, description="images are resized to it first, in pixels")
    resampling: Literal["bicubic", "bilinear"] = Field("bicubic", description="of the resizing to the short side")
    background: Literal["auto", "class", "threshold", "class-and-threshold", "none"] = Field(
        "auto", description="rule; see docs/inference.md"
    )
    background_threshold: float = Field(0.5, description="probability below which a pixel is background")
    area_threshold: float | None = Field(
        None, ge=0, le=1, description="a class under this share of all that is not background is dropped"
    )
    logit_scale: float = Field(40.0, gt=0, description="on the cosines before the softmax; 40 is SC-CLIP's")
    predictions: Path | None = Field(None, description="folder for the predicted label maps, as PNG")

    renamed: ClassVar[dict[str, str]] = RENAMED | {"temperature": "logit_scale (its inverse)"}
