"""Options of box classification."""

from __future__ import annotations

from pipeline.evaluation.options.base import ClassNameOptions, ImageFolderOption


class BoxOptions(ImageFolderOption, ClassNameOptions):
    """Which class is in a box."""
