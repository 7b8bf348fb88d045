"""Where every thread of a rank is, on disk before the rank is ended: ``RUN/stacks/rank-00003.txt``.

faulthandler writes from a signal handler in C, so a rank that hangs in C code with Python's lock is seen too. On GPUs
NCCL's flight recorder adds the collectives that were under way.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TextIO

from pipeline.base.run_folder import RunFolder

DUMP_SIGNAL = signal.SIGUSR2  # SIGUSR1 is Slurm's warning
NCCL_ENTRIES = 2000


class Stacks:
    """``with Stacks(run_folder, rank): …``: :meth:`dump`, or the signal from anywhere, appends to the rank's file."""

    def __init__(self, run_folder: str | Path, rank: int) -> None:
        self.path = RunFolder.at(run_folder).stacks / f"rank-{rank:05d}.txt"
        self._file: TextIO | None = None

    def __enter__(self) -> Stacks:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a", encoding="utf-8")  # it stays open for the handler
        except OSError as error:  # a run goes on without them
            print(f"warning: stacks of a hang will not be written: {error}", file=sys.stderr, flush=True)
            return self
        faulthandler.register(DUMP_SIGNAL, file=self._file, all_threads=True, chain=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        faulthandler.unregister(DUMP_SIGNAL)
        empty = self._file.tell() == 0
        self._file.close()
        self._file = None
        if empty:
            self.path.unlink(missing_ok=True)

    def dump(self, why: str) -> None:
        """Append the stacks of all threads, and NCCL's records where there are some."""
        if self._file is None:
            return
        try:
            self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {why}\n")
            self._file.flush()
            faulthandler.dump_traceback(file=self._file, all_threads=True)
            self._file.write("\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            _dump_nccl(self.path.with_suffix(".nccl"))
        except (OSError, ValueError) as error:  # a full disk, or a file that was closed meanwhile
            print(f"warning: stacks were not written: {error}", file=sys.stderr, flush=True)


def prepare_nccl(run_folder: str | Path) -> None:
    """Switch NCCL's flight recorder on; before the process group is made. What the user has set stays."""
    folder = RunFolder.at(run_folder).stacks
    if "TORCH_NCCL_TRACE_BUFFER_SIZE" not in os.environ:  # the name before torch 2.9, still read
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", str(NCCL_ENTRIES))
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", str(folder / "nccl-rank-"))


def _dump_nccl(path: Path) -> None:
    import torch  # seconds; by now a rank has it

    if torch.cuda.is_available() and torch.distributed.is_nccl_available():
        path.write_bytes(torch._C._distributed_c10d._dump_nccl_trace())
