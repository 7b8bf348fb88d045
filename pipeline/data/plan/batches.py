"""A global batch as the plan names it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PlannedBatch:
    """A global batch of B samples. pipeline/data/slices.py divides it among ranks."""

    epoch: int
    number: int  # within the epoch
    language: str
    patch_budget: int  # patches
    group: int
    first: int  # position in the group's stream of the epoch
    window: int
    shards: np.ndarray  # [B] int64, over the shards of all sources
    ordinals: np.ndarray  # [B] int64
    pieces: np.ndarray  # [B] int64, within the shard
    places: np.ndarray  # [B] uint64; see locality.py

    def __len__(self) -> int:
        return len(self.shards)
