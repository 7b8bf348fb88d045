"""FG-CLIP 1 of this project: a CLIP whose regions and long texts have paths of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from pipeline.data.resolution import PATCH_SIZE
from pipeline.evaluation.models.base import EncodedImages, Prepared
from pipeline.evaluation.models.fgclip2 import FGCLIP2Evaluation
from pipeline.evaluation.results import EvaluationError
from pipeline.evaluation.scclip import Calibration
from pipeline.model import FGCLIP1

ONE_SIZE = (
    "SC-CLIP and windows need a CLIP whose grid can be resized; evaluate the CLIP folder that training began from"
)


class FGCLIP1Evaluation(FGCLIP2Evaluation):
    """Every image is squeezed to the tower's square, as in training."""

    has_class_token = True
    has_patch_budgets = False
    module: FGCLIP1

    def __init__(self, module: FGCLIP1, tokenizer: Any, **stated: Any) -> None:
        """``stated``: as of FGCLIP2Evaluation; its patch budgets are the tower's one size."""
        vision = module.config.vision_config
        super().__init__(module, tokenizer, **stated | {"patch_budgets": [vision.loader_patches]})
        self.kind = "fgclip1"
        self.image_size, self.patch_size = vision.image_size, vision.patch_size

    def with_patch_budgets(self, budgets: Sequence[int]) -> FGCLIP2Evaluation:
        """Raises EvaluationError: the model takes one size of image."""
        raise EvaluationError(f"{self.name} takes squares of {self.image_size} pixels; leave patch_budgets out")

    def prepare(self, image: Image.Image, dense: bool = False) -> Prepared:
        side = self.module.config.vision_config.image_size // PATCH_SIZE
        return self._patches(image, side**2, (side, side))

    def prepare_window(self, image: Image.Image) -> Prepared:
        return self.prepare(image, dense=True)

    def encode_images(self, prepared: Sequence[Prepared], dense: bool = False) -> EncodedImages:
        found = super().encode_images(prepared, dense)
        if not dense or found.shapes is None:
            return found
        # the tower's own grid, which is not that of the 16-pixel patches that it was given
        side = self.module.config.vision_config.grid_side
        mask = torch.ones(len(prepared), side**2, dtype=torch.int32, device=self.device)
        return EncodedImages(found.embeds, found.dense, mask, torch.full_like(found.shapes, side))

    def encode_dense(self, prepared: Sequence[Prepared], calibration: Calibration | None) -> EncodedImages:
        if calibration is not None:
            raise EvaluationError(f"{self.name} is an fgclip1 model; {ONE_SIZE}")
        return self.encode_images(prepared, dense=True)

    def region_path(self) -> str:
        return "RoIAlign 1x1 over the last-but-one layer's patches through roi_projection, of the image as a square"

    def settings(self) -> dict[str, Any]:
        stated = super().settings()
        del stated["patch_budgets"]
        return stated | {"image_size": self.image_size, "preparation": "squeezed to the tower's square"}
