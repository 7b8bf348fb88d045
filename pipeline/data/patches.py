"""Pixels to the patches that the vision tower reads.

Shape letters: P patches. ``patchify`` gives what transformers' SigLIP 2 image processor gives (bilinear with
antialias, to [-1, 1], patches in row-major order, zeros as padding), several times faster: resizing goes through torch,
whose antialiased uint8 kernel is vectorised.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.data.resolution import PATCH_SIZE, grid_of

PATCH_VALUES = PATCH_SIZE * PATCH_SIZE * 3


def patchify(
    image: Image.Image | np.ndarray, num_patches: int, grid: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """``(pixel_values [P, 768] float32, mask [P] int32, (h, w) in patches)`` of an RGB image, P = ``num_patches``.

    ``grid`` is for images decoded with a ``target``: their rounded size may fit another grid than the stored one.
    """
    array = np.asarray(image if isinstance(image, np.ndarray) else image.convert("RGB"))
    grid = grid or grid_of(array.shape[1], array.shape[0], num_patches)
    values = torch.zeros(num_patches, PATCH_VALUES)
    write_patches(array, grid, values)
    mask = torch.zeros(num_patches, dtype=torch.int32)
    mask[: grid[0] * grid[1]] = 1
    return values, mask, grid


def write_patches(array: np.ndarray, grid: tuple[int, int], out: Tensor) -> None:
    """Resize an RGB array [height, width, 3] uint8 to ``grid`` patches and write them into ``out[: h * w]``.

    ``out`` is [P, 768], P >= h·w; its rows after h·w are left alone. uint8 takes the values as they are, float32 in
    [-1, 1]; the vision tower normalises uint8 in the same way, on its device.
    """
    rows, columns = grid
    size = (rows * PATCH_SIZE, columns * PATCH_SIZE)
    if not array.flags.writeable:  # torch warns about read-only memory, which is never written here
        array = array.copy()
    pixels = torch.from_numpy(array).unsqueeze(0)  # [1, height, width, 3]
    if array.shape[:2] != size:
        # Unsqueezed before it is permuted, the image has the strides that torch takes for channels-last: its
        # kernel then reads and writes pixels as they lie, in half the time.
        planes = pixels.permute(0, 3, 1, 2)
        resized = torch.nn.functional.interpolate(planes, size=size, mode="bilinear", antialias=True)
        pixels = resized.permute(0, 2, 3, 1)
    lines = pixels.reshape(rows, PATCH_SIZE, columns, PATCH_SIZE * 3)  # one run of bytes a line of a patch
    target = out[: rows * columns]
    target.view(rows, columns, PATCH_SIZE, PATCH_SIZE * 3).copy_(lines.permute(0, 2, 1, 3))
    if out.dtype != torch.uint8:
        target.mul_(1 / 127.5).sub_(1.0)
