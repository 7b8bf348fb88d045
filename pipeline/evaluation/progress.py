"""How far a long pass is, on standard error."""

from __future__ import annotations

import sys
import time


class ProgressLine:
    """A line now and then; ``every_seconds`` None says nothing."""

    def __init__(self, label: str, total: int, every_seconds: float | None) -> None:
        self.label, self.total, self.every_seconds = label, total, every_seconds
        self.done, self.start = 0, time.monotonic()
        self.next = self.start + (every_seconds or 0)

    def advance(self, count: int) -> None:
        """``count`` more are done."""
        self.done += count
        now = time.monotonic()
        if self.every_seconds is not None and now >= self.next:
            self.next = now + self.every_seconds
            rate = self.done / (now - self.start)
            print(f"{self.label}: {self.done} of {self.total}, {rate:.0f}/s on this rank", file=sys.stderr, flush=True)
