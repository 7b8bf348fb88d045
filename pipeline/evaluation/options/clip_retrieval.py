"""Options of text-clip retrieval."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.evaluation.options.base import ClipOptions, LanguageOption


class ClipRetrievalOptions(ClipOptions, LanguageOption):
    """Text-clip retrieval."""

    max_clips: int | None = Field(None, ge=1, description="the first so many clips of the language")
    text_kind: Literal["auto", "short", "long"] = Field(
        "auto", description="captions and text path; auto: long ones where the first clip has one"
    )
    short_prefix: str | None = Field(None, description="read before short captions (default: the run's)")
