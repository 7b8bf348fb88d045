"""Options of FG-OVD."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.evaluation.options.base import ImageFolderOption, LanguageOption


class FGOVDOptions(ImageFolderOption, LanguageOption):
    """A region against one true phrase and altered ones."""

    ties: Literal["miss", "hit"] = Field(
        "miss", description="what a wrong phrase counts as that scores exactly as the true one; published: hit"
    )
