"""Options of zero-shot classification."""

from __future__ import annotations

from pydantic import Field

from pipeline.evaluation.options.base import ClassNameOptions


class ClassificationOptions(ClassNameOptions):
    """Classes of whole images."""

    format: str = Field("auto", description="folders or clip-benchmark (default: by its form)")
    split: str = Field("test", description="folder of CLIP_benchmark's tars")
