"""A signal asks the run to finish its step, write a checkpoint and end. A second Ctrl-C ends it at once."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # SIGUSR1: Slurm's warning before the time limit


class StopRequest:
    """Remembers the first stop signal. Use as a context manager, which restores the handlers afterwards."""

    def __init__(self) -> None:
        self.received: int = 0
        self._before: dict[int, Any] = {}  # handlers in any of the forms of signal.signal

    def __enter__(self) -> StopRequest:
        for number in STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT == number:
            os._exit(128 + number)  # the user said it twice: no checkpoint, no collective, no waiting
        self.received = self.received or number
