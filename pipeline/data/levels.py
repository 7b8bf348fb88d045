"""The columns by which samples are counted: what images, and clips of each number of frames, are resized to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.data.resolution import budget_numbers

ANY_CLIP = (1,)  # the numbers of frames of a manifest that says of its clips only that they are clips


class Level(NamedTuple):
    """What the samples of a batch have in common beside their language."""

    patch_budget: int
    frames: int  # 1 for images; 0 for clips that are too short


@dataclass(frozen=True)
class Levels:
    """K patch budgets of images; with ``clip_frames`` K more of clips for each number of frames, and K of what is over.

    A clip goes to the largest number of frames that it has; K columns at the end hold clips that are shorter than all.
    """

    patch_budgets: tuple[int, ...]
    clip_frames: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.patch_budgets) * self.num_blocks

    @property
    def num_blocks(self) -> int:
        """Runs of K columns: images, one a number of frames, and clips that are too short."""
        return len(self.clip_frames) + 2 if self.clip_frames else 1

    @property
    def num_used(self) -> int:
        """Columns of samples that are trained on."""
        return len(self.patch_budgets) * (len(self.clip_frames) + 1)

    def all_used(self) -> list[Level]:
        """Those columns, in order."""
        return [Level(budget, frames) for frames in (1, *self.clip_frames) for budget in self.patch_budgets]

    def frames_of_block(self, block: int) -> int:
        """1 for images; 0 for clips that are too short."""
        return (1, *self.clip_frames, 0)[block]

    def level(self, number: int) -> Level:
        """The column of a number."""
        block, budget = divmod(number, len(self.patch_budgets))
        return Level(self.patch_budgets[budget], self.frames_of_block(block))

    def numbers(self, width: np.ndarray, height: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """[N] int64, the columns of samples; ``frames`` [N] is 0 for images."""
        return self._with_frames(budget_numbers(width, height, self.patch_budgets), frames)

    def numbers_of_patches(self, patches: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """As ``numbers``, of samples with so many whole patches."""
        last = len(self.patch_budgets) - 1
        return self._with_frames(np.minimum(np.searchsorted(self.patch_budgets, patches), last), frames)

    def _with_frames(self, budgets: np.ndarray, frames: np.ndarray) -> np.ndarray:
        if not self.clip_frames:
            return budgets
        block = np.searchsorted(self.clip_frames, frames, side="right")  # 0: shorter than all
        block = np.where(frames == 0, 0, np.where(block == 0, self.num_blocks - 1, block))
        return block * len(self.patch_budgets) + budgets
