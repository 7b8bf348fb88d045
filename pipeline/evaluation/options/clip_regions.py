"""Options of region phrases in clips."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pipeline.evaluation.options.base import ClipOptions, LanguageOption


class ClipRegionOptions(ClipOptions, LanguageOption):
    """A region of a clip against one true phrase and altered ones."""

    rows: tuple[Path, ...] = Field(
        (), description="files or a folder of JSONL rows (default: phrases/ beside the shards, else the records' own)"
    )
    ties: Literal["miss", "hit"] = Field(
        "miss", description="what a wrong phrase counts as that scores as the true one"
    )
