"""How a loader's worker process takes signals, and how its errors reach the training process."""

from __future__ import annotations

import os
import signal
import threading
from typing import NamedTuple

from torch.utils.data import get_worker_info

from pipeline.base.border import one_line
from pipeline.data.faults import DataFaultLimit
from pipeline.data.transport import StoreUnavailable

# What input, disks and stores can bring about. Anything else is a defect, which torch hands on with its traceback.
KNOWN = (DataFaultLimit, StoreUnavailable, OSError, ValueError)
DIED = "DataLoader worker (pid"  # how torch (2.13) begins its messages about a worker that is gone

TERM_GRACE_SECONDS = 40.0  # more than the 30 that DeepSpeed's launcher waits before it sends SIGKILL


class Failed(NamedTuple):
    """What ended the work of a worker: raised again, as one line, in the training process."""

    error: type[Exception]
    message: str


def failed(error: Exception) -> Failed:
    """One of ``KNOWN`` on its way out of a worker. torch would raise it again with a traceback for a message."""
    kind = next(kind for kind in KNOWN if isinstance(error, kind))
    worker = get_worker_info()
    return Failed(kind, f"loader worker {worker.id}: {one_line(error)}" if worker else one_line(error))


def lost_worker(error: RuntimeError) -> str | None:
    """What to say of a worker that was killed; None for another error. torch raises it wherever training is."""
    if not str(error).startswith(DIED):
        return None
    return (
        f"{one_line(error)}; if memory was short (the kernel's log says so), lower data.num_workers or "
        "data.prefetch_batches"
    )


def prepare_worker(_: int) -> None:
    """Let the training process decide: it ends its workers itself, after the checkpoint that a signal asks for.

    Ctrl-C reaches the whole process group, and DeepSpeed's launcher sends SIGTERM to every process below it. A worker
    that died of either would fail the step in hand. It ends a while after SIGTERM all the same, so that it
    does not outlive a parent that is killed.
    """

    def end_later(number: int, frame: object) -> None:
        timer = threading.Timer(TERM_GRACE_SECONDS, os._exit, [128 + number])
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_later)
