"""The processes that share an evaluation: who does which rows, and how the rows come together again.

A plain ``python -m pipeline.evaluation`` is one process. Under torchrun, deepspeed, srun or mpirun every process takes
each N-th chunk of N processes. Features are gathered on all ranks over gloo (they lie in main memory), so the scores do
not depend on how many processes there are.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from pipeline.base.ranks import RankError, RankInfo, read_rank_info


@dataclass(frozen=True)
class Ranks:
    """This process among those of the evaluation. ``group`` is a gloo group, or None for a single process.

    ``owned``: the process group was made here, and :meth:`close` leaves it.
    """

    info: RankInfo = RankInfo()
    group: dist.ProcessGroup | None = None
    owned: bool = False

    @classmethod
    def from_environment(cls, timeout_seconds: float = 1800.0) -> Ranks:
        """The group that the launcher's variables name; joins it (and makes it, where nobody did before).

        Raises:
            RankError: the variables contradict each other, or the first host of several is not named.
        """
        info = read_rank_info()
        if info.world_size == 1:
            return cls()
        timeout = timedelta(seconds=timeout_seconds)
        owned = not dist.is_initialized()
        if owned:
            _name_the_meeting_place(info)
            dist.init_process_group("gloo", rank=info.rank, world_size=info.world_size, timeout=timeout)
        group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=timeout)
        return cls(info, group or dist.group.WORLD, owned)

    @property
    def size(self) -> int:
        return self.info.world_size

    @property
    def is_main(self) -> bool:
        return self.info.is_main

    def share(self, count: int) -> range:
        """The numbers below ``count`` that this rank works on."""
        return range(self.info.rank, count, self.size)

    def gather(self, mine: Any) -> list[Any]:
        """Every rank's object, by rank, on every rank. All ranks must call it."""
        if self.size == 1:
            return [mine]
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, mine, group=self.group)
        return everyone

    def device(self, name: str) -> str:
        """``cuda`` becomes this process's own accelerator of its host; every other name stays."""
        return f"cuda:{self.info.local_rank}" if name == "cuda" and self.size > 1 else name

    def close(self) -> None:
        """Leave a group that ``from_environment`` made; one that was there before stays."""
        if self.owned:
            dist.destroy_process_group()


def _name_the_meeting_place(info: RankInfo) -> None:
    """torchrun and deepspeed name it; srun and mpirun leave it to the user where there are several hosts."""
    if "MASTER_ADDR" not in os.environ and info.local_world_size < info.world_size:
        raise RankError(
            f"{info.world_size} processes on several hosts, but MASTER_ADDR is not set; export the name of the first "
            "host, with Slurm: MASTER_ADDR=$(scontrol show hostnames | head -n 1)"
        )
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
