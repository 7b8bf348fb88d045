"""What the host must know of a batch before it can launch its kernels: Python numbers, and row numbers as tensors.

Made where the batch is made, on the CPU, and carried along with it. A forward pass that was given them never waits for
the device; without them it reads the same things back.

Shape letters: B images, G distinct grids, I images with boxes, R boxes, P patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# A box that reaches beyond its image is sampled beyond it too, as the compiled kernel does; past this many image sides
# the samples stop growing in number, so that one absurd box cannot take all memory (assumption: none is meant).
MAX_SIDES_SAMPLED = 4


@dataclass(frozen=True)
class ImageLayout:
    """How the patches of a batch's images lie."""

    grids: tuple[tuple[int, int], ...]  # the G distinct grids, height and width in patches
    grid_sizes: Tensor  # [G, 2] int64, the same
    grid_number: Tensor  # [B] int64, into the G grids
    all_real: bool  # no image has a row of padding

    @property
    def longest_side(self) -> int:
        """In patches."""
        return max(max(grid) for grid in self.grids)


@dataclass(frozen=True)
class RegionLayout:
    """Which images have boxes, and how large the tables of region pooling must be."""

    boxed_images: Tensor  # [I] int64, into B; one image stands in where none has a box
    region_slot: Tensor  # [R] int64, into I
    longest_side: int  # in patches, of the boxed images
    most_boxes: int  # of one image
    most_samples: int  # that one side of a box is sampled at


def image_layout(spatial_shapes: Tensor, num_patches: int) -> ImageLayout:
    """The layout of images with heights and widths [B, 2] in ``num_patches`` rows each. Reads ``spatial_shapes``.

    Raises:
        ValueError: a grid without patches, or of more than ``num_patches``.
    """
    numbers: dict[tuple[int, int], int] = {}
    which = [numbers.setdefault((height, width), len(numbers)) for height, width in spatial_shapes.tolist()]
    for height, width in numbers:
        if height < 1 or width < 1 or height * width > num_patches:
            raise ValueError(
                f"spatial_shapes holds ({height}, {width}); height and width must be positive and their product at "
                f"most the {num_patches} patches of pixel_values"
            )
    all_real = all(height * width == num_patches for height, width in numbers)
    device = spatial_shapes.device
    sizes = torch.tensor(list(numbers), dtype=torch.int64, device=device).reshape(-1, 2)
    return ImageLayout(tuple(numbers), sizes, torch.tensor(which, dtype=torch.int64, device=device), all_real)


def region_layout(boxes: Tensor, region_image: Tensor, spatial_shapes: Tensor) -> RegionLayout:
    """The layout of boxes [R, 4] of the images numbered in [R] with grids [B, 2]. Reads all three."""
    images: list[int] = region_image.tolist()
    boxed = sorted(set(images)) or [0]
    slots = {image: slot for slot, image in enumerate(boxed)}
    device = region_image.device
    longest, most_samples = int(spatial_shapes.max()) if len(spatial_shapes) else 1, 1
    if images:
        grids = spatial_shapes[region_image]
        longest = int(grids.max())
        # One more than needed: another device may round an extent up to the next whole number.
        most_samples = int(sample_counts(boxes, grids, longest).max()) + 1
    return RegionLayout(
        boxed_images=torch.tensor(boxed, dtype=torch.int64, device=device),
        region_slot=torch.tensor([slots[image] for image in images], dtype=torch.int64, device=device),
        longest_side=longest,
        most_boxes=max(_counts(images), default=0),
        most_samples=max(most_samples, 1),
    )


def _counts(images: Sequence[int]) -> list[int]:
    found: dict[int, int] = {}
    for image in images:
        found[image] = found.get(image, 0) + 1
    return list(found.values())


def sample_counts(boxes: Tensor, grids: Tensor, longest_side: int) -> Tensor:
    """Samples along both sides, [R, 2] (height, width), of boxes [R, 4] normalised xyxy in grids [R, 2]."""
    x1, y1, x2, y2 = finite_boxes(boxes)[0].unbind(-1)
    sides = ((y1, y2, grids[:, 0]), (x1, x2, grids[:, 1]))
    return torch.stack([side_extent(low * size, high * size, longest_side)[2] for low, high, size in sides], dim=1)


def finite_boxes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes in float32 (or float64) with 0 where one of their numbers is not finite, and [R] bool."""
    boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
    finite = boxes.isfinite().all(dim=-1)
    return torch.where(finite.unsqueeze(-1), boxes, 0.0), finite


def side_extent(start: Tensor, end: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Start and extent in cells, and the number of samples: one a cell."""
    # The half cell moves from the corners of cells to their centres ("aligned"). The order of these operations is the
    # kernel's: rounding decides on which side of a whole number an extent falls, and so how many samples there are.
    start, end = start - 0.5, end - 0.5
    extent = end - start
    return start, extent, extent.ceil().clamp(min=0, max=MAX_SIDES_SAMPLED * length)
