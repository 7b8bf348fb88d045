"""This process among all: rank, world size and its place on its host, from the variables that launchers set."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

# torchrun and DeepSpeed first, then Slurm's srun, then Open MPI. SLURM_NTASKS is also set in the batch script itself,
# where only one process runs; srun alone sets the step's own count.
_VARIABLES = {
    "rank": ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"),
    "world_size": ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"),
    "local_rank": ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"),
    # LOCAL_SIZE is the DeepSpeed launcher's
    "local_world_size": ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
}
MOST_WORKERS = 32  # more decode faster than any device in use trains
_SLURM_TASKS = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE")


class RankError(ValueError):
    """The rank variables of the environment contradict each other or are not whole numbers."""


@dataclass(frozen=True)
class RankInfo:
    """One process of ``world_size``; ``local_rank`` counts on its own host, which runs ``local_world_size``."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Rank 0 writes what is written once a run."""
        return self.rank == 0

    @property
    def is_local_main(self) -> bool:
        """One process a host."""
        return self.local_rank == 0


def read_rank_info(environment: Mapping[str, str] | None = None) -> RankInfo:
    """The rank variables of torchrun, DeepSpeed, Slurm or Open MPI; a process started by hand is the only one.

    Raises:
        RankError: a variable is no whole number, or 0 <= rank < world size does not hold (on the host likewise).
    """
    environment = os.environ if environment is None else environment
    world_size = _read(environment, "world_size", 1)
    rank = _read(environment, "rank", 0) if world_size > 1 else 0
    local_rank = _read(environment, "local_rank", 0) if world_size > 1 else 0
    local_world_size = _read(environment, "local_world_size", None) or _slurm_tasks_here(environment) or world_size
    info = RankInfo(rank, world_size, local_rank, min(local_world_size, world_size))
    if info.rank >= info.world_size or info.local_rank >= info.local_world_size:
        raise RankError(
            f"this process is rank {info.rank} of {info.world_size}, {info.local_rank} of {info.local_world_size} on "
            "its host; a rank must be below its world size: start the processes with torchrun, deepspeed or srun"
        )
    return info


def rank_cores(local_world_size: int, environment: Mapping[str, str] | None = None) -> int:
    """Cores that one rank may use: those of the host shared out, or those that Slurm gave to this task alone."""
    environment = os.environ if environment is None else environment
    allowed = len(os.sched_getaffinity(0))
    per_task = environment.get("SLURM_CPUS_PER_TASK", "")
    if per_task.isdigit() and "SLURM_PROCID" in environment and local_world_size > 1:
        # srun binds a task to its cores where the site switched binding on; elsewhere all tasks see all cores
        return max(1, min(allowed, int(per_task)))
    return max(1, allowed // local_world_size)


def loader_workers(wanted: int | None, local_world_size: int) -> int:
    """Decoding processes of a rank: as many as wanted, else its cores less the one of the training process."""
    return wanted if wanted is not None else max(1, min(MOST_WORKERS, rank_cores(local_world_size) - 1))


def has_launcher(environment: Mapping[str, str] | None = None) -> bool:
    """Whether torchrun's agent or DeepSpeed's per-node launcher started this process and waits for it.

    srun ends its tasks itself; a process started by hand may outlive its shell.
    """
    environment = os.environ if environment is None else environment
    return "TORCHELASTIC_RUN_ID" in environment or {"CROSS_RANK", "LOCAL_SIZE"} <= set(environment)


def _read(environment: Mapping[str, str], name: str, default: int | None) -> int:
    for variable in _VARIABLES[name]:
        if value := environment.get(variable):
            if not value.isdigit():
                raise RankError(f"{variable} is {value!r}; it must be a whole number, and launchers set it so")
            return int(value)
    return default  # type: ignore[return-value]  # None only where the caller asks for it


def _slurm_tasks_here(environment: Mapping[str, str]) -> int | None:
    """Slurm writes the tasks of all nodes as ``8(x2),4``; this node's is at position SLURM_NODEID."""
    counts: list[int] = []
    text = next((environment[name] for name in _SLURM_TASKS if environment.get(name)), "")
    for count, repeats in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(repeats or 1)
    node = int(environment.get("SLURM_NODEID") or 0)
    return counts[min(node, len(counts) - 1)] if counts else None
