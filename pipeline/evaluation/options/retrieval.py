"""Options of retrieval."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pipeline.evaluation.options.base import ImageFolderOption, LanguageOption


class RetrievalOptions(ImageFolderOption, LanguageOption):
    """Image-text retrieval."""

    format: str = Field("auto", description="of --data (default: by its form); see docs/inference.md")
    split: str = Field("test", description="of files that hold several")
    image_ids: Path | None = Field(None, description="text file of image names: only these are evaluated")
    max_images: int | None = Field(None, ge=1, description="the first so many images")
    captions_per_image: int | None = Field(None, ge=1, description="the first so many of each image; published: 5")
    text_kind: Literal["auto", "short", "long"] = Field("auto", description="text path; auto: long for long captions")
    short_prefix: str | None = Field(
        None, description="read before short captions (default: the run's for the language; published: none)"
    )
