"""Options of FG-OVD."""

from __future__ import annotations

from pipeline.evaluation.options.base import ImageFolderOption, LanguageOption


class FGOVDOptions(ImageFolderOption, LanguageOption):
    """A region against one true phrase and altered ones."""
