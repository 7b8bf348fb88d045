"""Settings of light augmentation, off by default."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.group import Group


class AugmentSettings(Group):
    """How often an image is seen otherwise; what is said of it stays true (pipeline/data/augment.py)."""

    crop_share: float = Field(0.0, ge=0, le=1)  # of the images; every box stays whole
    crop_least_area: float = Field(0.7, gt=0, le=1)  # that a crop keeps; of a smaller part a caption is less true
    flip_share: float = Field(0.0, ge=0, le=1)  # of the images whose texts name no side and no writing
    colour_share: float = Field(0.0, ge=0, le=1)  # of the images whose texts name no colour and no light
    colour_strength: float = Field(0.2, gt=0, lt=1)  # brightness, contrast and saturation times 1 ± this

    @property
    def is_on(self) -> bool:
        """Whether any image is changed."""
        return any((self.crop_share, self.flip_share, self.colour_share))
