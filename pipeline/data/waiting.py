"""What the processes of a rank wait for at remote stores, on a board in shared memory that its heartbeats read."""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from urllib.parse import urlsplit

from pipeline.base.border import shown

_ROW = struct.Struct("=dI84s")  # since when (monotonic seconds, one clock for all processes; 0: no wait), try, store
PROCESSES = 128


class WaitBoard:
    """A row a process: its oldest wait. Made before workers are forked."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, PROCESSES * _ROW.size)
        self._lock = threading.Lock()
        self._waits: dict[tuple[int, int], tuple[float, int, bytes]] = {}  # of this process's threads

    def note(self, url: str, attempt: int, since: float) -> None:
        """This thread has waited for ``url`` since ``since`` and makes its ``attempt``-th try next."""
        with self._lock:
            self._waits[os.getpid(), threading.get_ident()] = (since, attempt, store_of(url).encode()[:84])
            self._write()

    def forget(self) -> None:
        """This thread has what it waited for, or has given up."""
        with self._lock:
            if self._waits.pop((os.getpid(), threading.get_ident()), None) is not None:
                self._write()

    def _write(self) -> None:
        process = os.getpid()
        oldest = min((wait for (owner, _), wait in self._waits.items() if owner == process), default=(0.0, 0, b""))
        _ROW.pack_into(self._memory, process % PROCESSES * _ROW.size, *oldest)

    def oldest(self) -> str | None:
        """The longest wait of all processes, as ``waits for store.example, try 3, 42 s``; None where nobody waits."""
        rows = [_ROW.unpack_from(self._memory, number * _ROW.size) for number in range(PROCESSES)]
        since, attempt, store = min((row for row in rows if row[0]), default=(0.0, 0, b""))
        if not since:
            return None
        name = store.rstrip(b"\0").decode("utf-8", "replace")
        return f"waits for {name}, try {attempt}, {time.monotonic() - since:.0f} s"


def store_of(url: str) -> str:
    """The host or bucket of a URL, for people; without a password that it may carry."""
    try:
        found = urlsplit(url)
        port = f":{found.port}" if found.port else ""
    except ValueError:  # no port that is a number
        return shown(url, 80)
    return shown(f"{found.hostname or found.path}{port}", 80)
