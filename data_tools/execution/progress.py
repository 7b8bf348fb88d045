"""Progress of a run on standard error: rate and time left; plain lines where nobody sits before a terminal."""

from __future__ import annotations

import sys
import time

LINE_SECONDS = 30.0  # between lines of a log
REDRAW_SECONDS = 0.5  # on a terminal


class Progress:
    """Counts jobs and samples; jobs found finished do not enter the rate."""

    def __init__(self, title: str, num_jobs: int) -> None:
        self.title, self.num_jobs = title, num_jobs
        self.done = self.skipped = self.samples = 0
        self.terminal = sys.stderr.isatty()
        self._start = self._shown = time.monotonic()

    def add(self, samples: int) -> None:
        self.samples += samples
        self._show()

    def job(self, skipped: bool) -> None:
        self.done += 1
        self.skipped += skipped
        self._show()

    def line(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        worked, left = self.done - self.skipped, self.num_jobs - self.done
        remaining = _clock(seconds / worked * left) if worked else "?"
        return (
            f"{self.title}: {self.done}/{self.num_jobs} shards ({self.skipped} were finished before), "
            f"{self.samples} samples, {self.samples / seconds:.1f} samples/s, {remaining} left"
        )

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._shown >= (REDRAW_SECONDS if self.terminal else LINE_SECONDS):
            self._shown = now
            print(
                f"\r{self.line()}\033[K" if self.terminal else self.line(),
                end="" if self.terminal else "\n",
                file=sys.stderr,
                flush=True,
            )

    def end(self) -> None:
        print(f"\r{self.line()}\033[K" if self.terminal else self.line(), file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
