"""Which patch budget an image belongs to, and the grid of patches it is resized to fill.

Shape letters: P patches. Sizes are in pixels unless the name says patches. A patch is 16×16 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from pipeline.base.constants import PATCH_BUDGETS

PATCH_SIZE = 16  # pixels, as SigLIP 2's NaFlex towers
# The ends and the precision of SigLIP 2's search. They belong to the function that the towers were trained with:
# another precision picks another grid for some sizes.
SMALLEST_SCALE, LARGEST_SCALE, SCALE_PRECISION = 1e-6, 100.0, 1e-5


def level_of(width: int, height: int, patch_budgets: Sequence[int] = PATCH_BUDGETS) -> int:
    """The smallest budget that holds all whole patches of the image; the highest one where none does."""
    count = (width // PATCH_SIZE) * (height // PATCH_SIZE)
    return next((budget for budget in patch_budgets if count <= budget), patch_budgets[-1])


def budget_numbers(widths: np.ndarray, heights: np.ndarray, patch_budgets: Sequence[int]) -> np.ndarray:
    """``level_of`` for arrays of sizes, as positions in ``patch_budgets`` (int64)."""
    counts = patch_counts(widths, heights)
    return np.minimum(np.searchsorted(np.asarray(patch_budgets), counts, side="left"), len(patch_budgets) - 1)


def patch_counts(widths: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Whole patches of images of these sizes in pixels, int64."""
    return (widths.astype(np.int64) // PATCH_SIZE) * (heights.astype(np.int64) // PATCH_SIZE)


@lru_cache(maxsize=65536)
def grid_of(width: int, height: int, num_patches: int, keep_aspect_ratio: bool = True) -> tuple[int, int]:
    """Rows and columns of patches (h, w), h·w <= num_patches, of the largest image of about this shape.

    The same grid as transformers' SigLIP 2 processor chooses: the largest scale at which both sides, rounded up to
    whole patches, fit. ``keep_aspect_ratio=False`` gives the largest square whatever the shape.

    Raises:
        ValueError: a side or ``num_patches`` below 1.
    """
    if width < 1 or height < 1 or num_patches < 1:
        raise ValueError(f"image of {width}x{height} pixels for {num_patches} patches; all three must be at least 1")
    if not keep_aspect_ratio:
        side = math.isqrt(num_patches)
        return side, side

    def patches_at(scale: float, size: int) -> int:
        return max(1, math.ceil(size * scale / PATCH_SIZE))

    low, high = SMALLEST_SCALE, LARGEST_SCALE
    while high - low >= SCALE_PRECISION:
        middle = (low + high) / 2
        fits = patches_at(middle, height) * patches_at(middle, width) <= num_patches
        low, high = (middle, high) if fits else (low, middle)
    return patches_at(low, height), patches_at(low, width)
