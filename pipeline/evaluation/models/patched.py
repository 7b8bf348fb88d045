"""Images as patches in budgets, for every model that takes them so: in torch or behind onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from pipeline.data.patches import patchify
from pipeline.data.resolution import level_of
from pipeline.evaluation.models.base import EvaluationModel, Prepared


class PatchedEvaluation(EvaluationModel):
    """A model whose images keep their shape and go to the smallest of ``patch_budgets`` that holds them."""

    patch_size = 16
    has_patch_budgets = True
    patch_budgets: tuple[int, ...]

    def prepare(self, image: Image.Image, dense: bool = False) -> Prepared:
        return self._patches(image, level_of(image.width, image.height, self.patch_budgets))

    def prepare_window(self, image: Image.Image) -> Prepared:
        grid = (max(image.height // self.patch_size, 1), max(image.width // self.patch_size, 1))
        return self._patches(image, grid[0] * grid[1], grid)

    def _patches(self, image: Image.Image, budget: int, grid: tuple[int, int] | None = None) -> Prepared:
        pixels, mask, shape = patchify(image, budget, grid)
        return Prepared(pixels, (budget,), (mask, tuple(shape)))

    def _batch(self, prepared: Sequence[Prepared]) -> tuple[Tensor, Tensor, Tensor]:
        pixels = torch.stack([one.pixels for one in prepared]).to(self.device)
        mask = torch.stack([one.extra[0] for one in prepared]).to(self.device)
        return pixels, mask, torch.tensor([one.extra[1] for one in prepared], device=self.device)
