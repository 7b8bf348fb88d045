"""The processes that share an evaluation: who does which rows, and how the rows come together again.

A plain ``python -m pipeline.evaluation`` is one process. Under torchrun, deepspeed or Slurm the standard variables
``RANK`` and ``WORLD_SIZE`` are read and every process takes each ``WORLD_SIZE``-th chunk. Features are gathered on all
ranks over gloo (they lie in main memory), so the numbers do not depend on how many processes there are.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist


class RankError(ValueError):
    """The rank variables of the environment do not describe a group."""


@dataclass(frozen=True)
class Ranks:
    """This process's place. ``group`` is a gloo group, or None for a single process; ``owned``: it was made here."""

    rank: int = 0
    size: int = 1
    group: Any = None
    owned: bool = False

    @classmethod
    def from_environment(cls, timeout_seconds: float = 1800.0) -> Ranks:
        """The group that RANK and WORLD_SIZE name; joins it (and makes it, where nobody did before).

        Raises:
            RankError: RANK or WORLD_SIZE is not a whole number, or RANK is not below WORLD_SIZE.
        """
        raw_size, raw_rank = os.environ.get("WORLD_SIZE", "1"), os.environ.get("RANK", "0")
        if not (raw_size.isdigit() and raw_rank.isdigit()) or int(raw_rank) >= int(raw_size):
            raise RankError(
                f"RANK={raw_rank} and WORLD_SIZE={raw_size}; 0 <= RANK < WORLD_SIZE must hold, let torchrun set them"
            )
        size, rank = int(raw_size), int(raw_rank)
        if size == 1:
            return cls()
        timeout = timedelta(seconds=timeout_seconds)
        owned = not dist.is_initialized()
        if owned:
            dist.init_process_group("gloo", rank=rank, world_size=size, timeout=timeout)
        group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=timeout)
        return cls(rank, size, group or dist.group.WORLD, owned)

    def share(self, count: int) -> range:
        """The numbers below ``count`` that this rank works on."""
        return range(self.rank, count, self.size)

    def gather(self, mine: Any) -> list[Any]:
        """Every rank's object, by rank, on every rank. All ranks must call it."""
        if self.size == 1:
            return [mine]
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, mine, group=self.group)
        return everyone

    def close(self) -> None:
        """Leave a group that ``from_environment`` made; one that was there before stays."""
        if self.owned:
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        return self.rank == 0
