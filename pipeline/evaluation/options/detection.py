"""Options of detection with fusion."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pipeline.evaluation.options.base import ClassNameOptions, ImageFolderOption


class DetectionOptions(ImageFolderOption, ClassNameOptions):
    """A detector's boxes with fused scores."""

    detector: Path | None = Field(None, description="folder of a zero-shot detector of transformers")
    proposals: Path | None = Field(None, description="boxes and confidences as COCO results JSON instead")
    alpha: float = Field(0.5, ge=0, description="exponent of the confidence")
    beta: float = Field(0.5, ge=0, description="exponent of the model's probability")
    confidence: Literal["auto", "box", "class"] = Field(
        "auto",
        description="of the detector: one a box, which competes in all classes (published), or one for each class; "
        "auto: for each class where every box has one",
    )
    box_threshold: float = Field(0.0, ge=0, le=1, description="least confidence of a proposal")
    max_detections: int = Field(300, ge=1, description="boxes an image")
    temperature: float = Field(0.01, gt=0, description="of the softmax over classes; 0.01 is the region losses' scale")
    seed: int = Field(0, description="of the proposals that are made for scenes")
    max_images: int | None = Field(None, ge=1, description="the first so many images")
    image_folder: str | None = Field(
        None, description="only images whose file lies in a folder of this name (LVIS: val2017)"
    )
    out: Path | None = Field(None, description="folder for pictures of the first images")
