"""Locks between the processes of a machine, for the cache that they share."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

THREAD_LOCKS = 4096  # of a process; two names may share one, which costs a little waiting
AGAIN_SECONDS = 0.05
# By process and file. The kernel's record locks are a process's, so what excludes its threads must be too: two readers
# with locks of their own would both believe that they hold a name, and closing one's file would let go of the other's.
_OF_PROCESS: dict[tuple[int, Path], NamedLocks] = {}


def locks_of(path: Path) -> NamedLocks:
    """The locks that a file holds, the same object for all who ask in this process."""
    place = os.getpid(), path.resolve()
    return _OF_PROCESS.get(place) or _OF_PROCESS.setdefault(place, NamedLocks(path))  # setdefault: of two, both get one


class NamedLocks:
    """Named locks between the processes and threads of a machine; a process that dies lets go of its own.

    Made by ``locks_of``. One file: a name is a byte of it, far away from the others. The kernel's record locks belong
    to a process and are all let go when it closes the file, so each process keeps one descriptor; threads exclude each
    other by a lock.

    The kernel takes two processes that wait for a name of each other for a deadlock, also where other threads hold
    those names and will let go. Such a wait is begun again. None is a real deadlock as long as who holds a name asks
    for no other, or for one that everybody asks for last.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._process = path, -1
        self._file: BinaryIO | None = None
        self._guard = threading.Lock()
        self._threads = [threading.RLock() for _ in range(THREAD_LOCKS)]

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        place = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 2
        with self._guard:
            if self._process != os.getpid():
                self._file, self._process = self._path.open("ab"), os.getpid()
                self._threads = [threading.RLock() for _ in range(THREAD_LOCKS)]
            file = self._file
            assert file is not None  # it was opened for this process
        with self._threads[place % THREAD_LOCKS]:
            _lock(file, place)
            try:
                yield
            finally:
                fcntl.lockf(file, fcntl.LOCK_UN, 1, place)


def _lock(file: BinaryIO, place: int) -> None:
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX, 1, place)
            return
        except OSError as error:
            if error.errno != errno.EDEADLK:
                raise
            time.sleep(AGAIN_SECONDS)
