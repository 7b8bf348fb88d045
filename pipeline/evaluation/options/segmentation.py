"""Options of segmentation without training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.evaluation.options.base import CalibrationOptions, ClassNameOptions


class SegmentationOptions(ClassNameOptions, CalibrationOptions):
    """Classes of patches."""

    format: str = Field("auto", description="layout of the folder (default: by its form); see docs/inference.md")
    split: str = Field("test", description="of sets that list several")
    max_images: int | None = Field(None, ge=1, description="the first so many images")
    window: int | None = Field(None, ge=1, description="side of the sliding window in pixels")
    stride: int | None = Field(None, ge=1, description="of the window in pixels")
    short_side: int | None = Field(None, ge=1, description="images are resized to it first, in pixels")
    background: Literal["auto", "class", "threshold", "none"] = Field("auto", description="rule")
    background_threshold: float = Field(0.5, description="probability below which a pixel is background")
    # 1/40 is SC-CLIP's scale
    temperature: float = Field(1 / 40, gt=0, description="of the softmax over classes (default 1/40)")
