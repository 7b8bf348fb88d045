"""A global batch as the plan names it, and how ranks share it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PlannedBatch:
    """A global batch of B samples. Rank r of R takes a contiguous part; see ``rank_slice``."""

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


def rank_slice(size: int, rank: int, world_size: int, part: int, accumulation_steps: int) -> slice:
    """The entries of a global batch of ``size`` that a rank reads for micro-batch ``part``.

    A micro-step of all ranks together is one contiguous part, so the number of ranks moves only borders inside it.
    """
    each = size // (world_size * accumulation_steps)
    start = (part * world_size + rank) * each
    return slice(start, start + each)
