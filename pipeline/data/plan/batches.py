"""A global batch as the plan names it, and the groups that batches are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class PlannedBatch:
    """A global batch of B samples. pipeline/data/slices.py divides it among ranks."""

    epoch: int
    number: int  # within the epoch
    language: str
    patch_budget: int  # patches
    frames: int  # of each clip; 1 for images
    group: int
    first: int  # position in the group's stream of the epoch
    window: int
    shards: np.ndarray  # [B] int64, over the shards of all sources
    ordinals: np.ndarray  # [B] int64
    pieces: np.ndarray  # [B] int64, within the shard
    places: np.ndarray  # [B] uint64; see locality.py

    def __len__(self) -> int:
        return len(self.shards)


class GroupCount(NamedTuple):
    """What an epoch has of the samples that can share a batch."""

    language: str
    patch_budget: int | None  # None where a batch mixes budgets
    samples: int
    batches: int  # full ones
    rest: int  # samples that fill none
    frames: int = 1


def name_of(group: GroupCount) -> str:
    """For people: ``en at 256 patches``, ``zh in clips of 8 frames at 256 patches``."""
    clips = f" in clips of {group.frames} frames" if group.frames > 1 else ""
    return f"{group.language}{clips}" + ("" if group.patch_budget is None else f" at {group.patch_budget} patches")
