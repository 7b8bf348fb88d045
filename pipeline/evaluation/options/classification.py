"""Options of zero-shot classification."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from pipeline.evaluation.options.base import ClassNameOptions


class ClassificationOptions(ClassNameOptions):
    """Classes of whole images."""

    format: str = Field("auto", description="folders or clip-benchmark (default: by its form)")
    class_names: Path | None = Field(
        None, description="names by folder (FOLDER<tab>NAME a line, or JSON); or open_clip: ImageNet's 1,000"
    )
    split: str = Field("test", description="folder of CLIP_benchmark's tars")
