"""A small process beside each rank: kills a rank that cannot end itself, and reports where a rank was killed.

The rank writes a byte about once a second. When none comes for longer than the limit (the rank was stopped, or hangs
with Python's lock), the watchdog asks for its stacks (stacks.py) and later kills it with SIGKILL, which a launcher
sees, unlike a stopped child. It needs no network, so it works on a host whose only rank was stopped. The rank's step
and phase are in memory that both share, so the message names the last :meth:`Watchdog.report`.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import tempfile

REPORT_BYTES = 256
# Runs without site-packages, so it starts in milliseconds and holds about 10 MB.
PROGRAM = f"""
import mmap, os, select, signal, sys
parent, limit, rank, shared = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], int(sys.argv[4])
stacks_after, asked = float(sys.argv[5]), False
report = mmap.mmap(shared, {REPORT_BYTES}, mmap.MAP_SHARED, mmap.PROT_READ)
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # launchers send it to all below them; the rank may yet save

def say(text):
    where = report[:].rstrip(b"\\0").decode("utf-8", "replace")
    try:
        sys.stderr.write(f"heartbeat: rank {{rank}} (process {{parent}}) {{text}} at {{where}}\\n")
        sys.stderr.flush()
    except OSError:
        pass

silent, explained = 0.0, False
while True:
    step = min(1.0, limit / 4)
    readable = select.select([0], [], [], step)[0]
    data = os.read(0, 4096) if readable else None
    if data and b"q" in data:
        break
    if data == b"" or os.getppid() != parent:
        if not explained:
            say("ended without an error message")
        break
    if data:
        silent, asked, explained = 0.0, False, explained or b"f" in data
        continue
    silent += step
    if stacks_after and silent > stacks_after and not asked:
        asked = True
        os.kill(parent, signal.SIGUSR2)  # its stacks, written by a handler in C
    if silent > limit:
        say(f"did not respond for {{silent:.0f}} s and was killed")
        os.kill(parent, signal.SIGKILL)
        break
"""


class Watchdog:
    """Starts the watching process; :meth:`alive` says that this rank works, :meth:`report` at what."""

    def __init__(self, rank: int, limit_seconds: float, stacks_after_seconds: float | None = None) -> None:
        """``stacks_after_seconds``: silent for so long, the rank gets the signal of stacks.py; None: never."""
        with tempfile.TemporaryFile() as file:
            file.truncate(REPORT_BYTES)
            self._report = mmap.mmap(file.fileno(), REPORT_BYTES)
            arguments = [
                str(os.getpid()),
                str(limit_seconds),
                str(rank),
                str(file.fileno()),
                str(stacks_after_seconds or 0),
            ]
            # a session of its own: a Ctrl-Z or a signal to the rank's group must not stop the watchdog as well
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", PROGRAM, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=[file.fileno()],
            )
        assert self._process.stdin is not None  # it was asked for
        self._pipe = self._process.stdin.fileno()
        os.set_blocking(self._pipe, False)

    def report(self, text: str) -> None:
        """Note the step and phase of this rank; costs a microsecond."""
        data = text.encode("utf-8")[:REPORT_BYTES]
        self._report[:] = data.ljust(REPORT_BYTES, b"\0")

    def alive(self) -> None:
        """This rank is alive. Returns at once, also when the watchdog is gone."""
        self._write(b".")

    def explain(self) -> None:
        """This rank ends by an error that it has printed."""
        self._write(b"f")

    def stop(self) -> None:
        """End the watchdog and wait for it."""
        self._write(b"q")
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _write(self, data: bytes) -> None:
        try:
            os.write(self._pipe, data)
        except (BlockingIOError, BrokenPipeError):  # it was stopped or killed: the run goes on without it
            return
