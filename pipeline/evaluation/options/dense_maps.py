"""Options of dense maps."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from pipeline.evaluation.options.base import CalibrationOptions


class DenseMapOptions(CalibrationOptions):
    """Similarity of every patch to a phrase."""

    phrases: tuple[str, ...] = Field(
        (),
        description="what to look for; may be given several times",
        json_schema_extra={"flag": "--phrase", "metavar": "TEXT"},
    )
    out: Path | None = Field(None, description="folder for the pictures")
    image_ids: Path | None = Field(None, description="text file of image names: only these are drawn")
    max_images: int = Field(16, ge=1, description="the first so many images")
