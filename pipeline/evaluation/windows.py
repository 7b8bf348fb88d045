"""Dense logits of images of any size: whole, or through a sliding window whose logits are averaged where they overlap.

Letters: C texts, D width, h and w patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pipeline.evaluation.models.base import EvaluationModel, Prepared
from pipeline.evaluation.options.segmentation import SegmentationOptions
from pipeline.evaluation.results import EvaluationError
from pipeline.evaluation.scclip import Calibration

LARGEST_LONG_SIDE = 2048  # pixels: the other limit of the toolboxes' Resize(2048, SHORT_SIDE), which SC-CLIP uses
Place = tuple[int, int, int, int]  # of a window on the canvas: top, left, height, width, in pixels


@dataclass(frozen=True)
class Windows:
    """How an image is cut. ``window`` None: the whole image as the model's own preparation takes it."""

    window: int | None
    stride: int
    short_side: int | None
    resampling: str = "bicubic"

    @classmethod
    def of(cls, options: SegmentationOptions, model: EvaluationModel) -> Windows:
        """The options, else the model's habit: CLIP slides over 1.5 times its size, the others take the whole image.

        Raises:
            EvaluationError: a window that is no whole number of patches, or a stride larger than it.
        """
        window, stride, short = options.window, options.stride, options.short_side
        if window is None and model.kind == "clip" and model.image_size is not None:
            window, short = model.image_size, short or model.image_size * 3 // 2
        if window is not None and window % model.patch_size:
            raise EvaluationError(f"window is {window}; it must be a multiple of the patch size, {model.patch_size}")
        stride = stride or (window or 2) // 2
        if window is not None and stride > window:
            raise EvaluationError(f"stride is {stride}, above the window of {window}; pixels between would be left out")
        return cls(window, stride, short, options.resampling)

    def resized(self, image: Image.Image) -> Image.Image:
        """The image with the short side that was asked for; its long side at most LARGEST_LONG_SIDE."""
        if self.short_side is None:
            return image
        scale = min(self.short_side / min(image.size), LARGEST_LONG_SIDE / max(image.size))
        width, height = (max(1, int(side * scale + 0.5)) for side in image.size)
        if self.resampling == "bicubic":
            return image.resize((width, height), Image.Resampling.BICUBIC)
        # Pillow widens its bilinear filter where it shrinks an image; the toolboxes' does not
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float()
        small = F.interpolate(pixels, (height, width), mode="bilinear", align_corners=False)[0]
        return Image.fromarray(small.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())

    def starts(self, length: int) -> list[int]:
        """Where windows begin along a side; the last ends at its end."""
        if self.window is None or length <= self.window:
            return [0]
        return [*range(0, length - self.window, self.stride), length - self.window]


def segment(
    model: EvaluationModel,
    images: dict[int, Image.Image],
    texts: dict[int, Tensor],
    windows: Windows,
    calibration: Calibration | None,
    sizes: dict[int, tuple[int, int]],
    batch_size: int,
) -> Iterator[tuple[int, Tensor]]:
    """``(number, logits [C, height, width])`` of each image: cosines of its texts, at ``sizes[number]`` pixels."""
    jobs: dict[tuple[int, ...], list[tuple[int, Place, Prepared]]] = {}
    canvas: dict[int, tuple[int, int]] = {}
    for number, image in images.items():
        for place, prepared in _windows(model, image, windows, canvas, number):
            jobs.setdefault(prepared.group, []).append((number, place, prepared))
    parts: dict[int, list[tuple[Place, Tensor]]] = {number: [] for number in images}
    for group in jobs.values():
        for start in range(0, len(group), batch_size):
            batch = group[start : start + batch_size]
            features = model.encode_dense([prepared for _, _, prepared in batch], calibration)
            for row, (number, place, _) in enumerate(batch):
                unit = F.normalize(features.grid(row), dim=-1)  # [h, w, D]
                similarity = unit @ texts[number].to(unit.device).T
                parts[number].append((place, similarity.permute(2, 0, 1)[None].cpu()))
    for number, of_image in parts.items():
        yield number, _stitched(of_image, canvas[number], sizes[number], windows.window is not None)


def _windows(
    model: EvaluationModel, image: Image.Image, windows: Windows, canvas: dict[int, tuple[int, int]], number: int
) -> Iterator[tuple[Place, Prepared]]:
    """The image's windows as ``((top, left, height, width) on the canvas, prepared)``."""
    image = windows.resized(image)
    canvas[number] = (image.height, image.width)
    if windows.window is None:
        yield (0, 0, image.height, image.width), model.prepare(image, dense=True)
        return
    side = windows.window
    for top in windows.starts(image.height):
        for left in windows.starts(image.width):
            box = (left, top, min(left + side, image.width), min(top + side, image.height))
            yield (top, left, box[3] - top, box[2] - left), model.prepare_window(image.crop(box))


def _stitched(
    parts: list[tuple[Place, Tensor]], canvas: tuple[int, int], size: tuple[int, int], sliding: bool
) -> Tensor:
    """Windows' logits on one canvas, averaged where they overlap, at the label's size."""
    if not sliding:
        return _resized(parts[0][1], size)[0]
    total = torch.zeros(1, parts[0][1].shape[1], *canvas)
    count = torch.zeros(1, 1, *canvas)
    for (top, left, height, width), grid in parts:
        total[..., top : top + height, left : left + width] += _resized(grid, (height, width))
        count[..., top : top + height, left : left + width] += 1
    return _resized(total / count, size)[0]


def _resized(grid: Tensor, size: tuple[int, int]) -> Tensor:
    return grid if tuple(grid.shape[-2:]) == tuple(size) else F.interpolate(grid, size, mode="bilinear")
