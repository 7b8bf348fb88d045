"""How a loader's worker process takes signals."""

from __future__ import annotations

import os
import signal
import threading

TERM_GRACE_SECONDS = 40.0  # more than the 30 that DeepSpeed's launcher waits before it sends SIGKILL


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
