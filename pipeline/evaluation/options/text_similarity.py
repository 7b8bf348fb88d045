"""Options of text-text similarity."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pipeline.evaluation.options.base import TaskOptions

TextPath = Literal["short", "long", "region"]
TEXT_PATHS: tuple[TextPath, ...] = ("short", "long", "region")


class TextSimilarityOptions(TaskOptions):
    """Near-alike texts against each other, through each text path."""

    text_kinds: tuple[TextPath, ...] = Field(
        TEXT_PATHS,
        description="text path; may be given several times (default: all three)",
        json_schema_extra={"flag": "--text-kind"},
    )
    out: Path | None = Field(None, description="folder for a picture of each matrix")
