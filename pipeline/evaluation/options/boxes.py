"""Options of box classification."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.evaluation.options.base import ClassNameOptions, ImageFolderOption


class BoxOptions(ImageFolderOption, ClassNameOptions):
    """Which class is in a box."""

    crowds: Literal["evaluate", "leave-out"] = Field(
        "evaluate", description="boxes around a crowd (COCO's iscrowd); the published numbers count them"
    )
    image_folder: str | None = Field(
        None, description="only images whose file lies in a folder of this name (LVIS: val2017)"
    )
