"""Bytes of a remote store, a range a request, and faults of a network waited out.

What a network does is weather: a refused or reset connection, a name that does not resolve, a status of 408, 425, 429
or 5xx, a body that is cut or stalls. Such a request is made again, with growing pauses of random length, until it
succeeds or ``patience_seconds`` are over. Only an object that is missing or forbidden is final.
"""

from __future__ import annotations

import http.client
import logging
import mmap
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pipeline.base.border import one_line
from pipeline.data.object_clients import client_of
from pipeline.data.waiting import WaitBoard
from pipeline.data.web_client import FINAL_STATUSES

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 5.0
CHUNK_BYTES = 64 << 20  # a longer range is fetched in parts
REPORT_SECONDS = 10.0  # between two warnings about one store
CHECKSUM_ATTEMPTS = 3  # the same wrong bytes twice more are the object's own
# Libraries below the clients whose errors are no OSError.
ERROR_CLASSES = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("requests.exceptions", "RequestException"),
    ("urllib3.exceptions", "HTTPError"),
)
log = logging.getLogger(__name__)
T = TypeVar("T")


class ShardUnavailable(OSError):
    """An object cannot be had: it is missing, forbidden, or has other bytes than the manifest says. ``kind``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class StoreUnavailable(RuntimeError):
    """The store gave nothing for longer than ``data.store_patience_seconds``; the run ends and can be resumed."""


class DamagedBody(OSError):
    """A body has another length or checksum than it should."""


class StoreCounts:
    """What the processes of a rank asked of remote stores, and wait for. Shared memory: made before a fork."""

    FIELDS = ("requests", "bytes", "retries")
    PROCESSES = 128

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, self.PROCESSES * len(self.FIELDS) * 8)
        self._table = np.frombuffer(self._memory, dtype=np.float64).reshape(-1, len(self.FIELDS))
        self._lock = threading.Lock()
        self.waits = WaitBoard()

    def add(self, field: str, value: float = 1.0) -> None:
        # A row a process, so that no two write to one; ids that fall together could lose a count, never more.
        with self._lock:
            self._table[os.getpid() % self.PROCESSES, self.FIELDS.index(field)] += value

    def totals(self) -> dict[str, float]:
        """Sums over all processes, by field."""
        return dict(zip(self.FIELDS, self._table.sum(0).tolist(), strict=True))


@dataclass
class Patience:
    """Tries a piece of work again until it succeeds, is final, or took too long."""

    seconds: float
    counts: StoreCounts
    stopped: Callable[[], bool] = lambda: False  # asked between attempts: nobody waits for the answer any more
    _reported: float = 0.0

    def __call__(self, what: str, work: Callable[[], T]) -> T:
        """
        Raises:
            ShardUnavailable: the object is missing or forbidden. StoreUnavailable: no answer for ``seconds``.
        """
        try:
            return self._until_done(what, work)
        finally:
            self.counts.waits.forget()

    def _until_done(self, what: str, work: Callable[[], T]) -> T:
        started, attempt = time.monotonic(), 1
        while True:
            try:
                return work()
            except ShardUnavailable:
                raise
            except transport_errors() as error:
                kind = final_kind(error)
                if kind is not None:
                    message = f"{what} is {kind} ({one_line(error)})"
                    raise ShardUnavailable(f"{kind}_shard", message) from error
                waited = time.monotonic() - started
                if waited > self.seconds or self.stopped():
                    raise StoreUnavailable(  # the last error last: what is too long for a line is cut there
                        f"{what} could not be read for {waited:.0f} s, longer than data.store_patience_seconds = "
                        f"{self.seconds:g}; see to the store or the network, then start the same command again: it "
                        f"resumes (last: {type(error).__name__}: {one_line(error)})"
                    ) from error
                self._report(what, error, waited)
            self.counts.add("retries")
            # a power of whole numbers has no float beyond 2**1023, and the longest pause is reached long before
            pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(attempt - 1, 32)) * random.uniform(
                0.5, 1.5
            )
            attempt += 1
            self.counts.waits.note(what, attempt, started)
            time.sleep(pause * random.uniform(0.5, 1.5))

    def _report(self, what: str, error: BaseException, waited: float) -> None:
        if time.monotonic() - self._reported > REPORT_SECONDS:
            self._reported = time.monotonic()
            retries = int(self.counts.totals()["retries"])
            log.warning("%s: %s: %s; trying again (%d retries so far, this one for %.0f s of %g)",
                        what, type(error).__name__, one_line(error), retries, waited, self.seconds)  # fmt: skip


class Transport:
    """Ranges of the objects under one URL, asked for until they come."""

    def __init__(self, url: str, patience: Patience) -> None:
        self.url, self.patience = url.rstrip("/"), patience

    def read(self, name: str, start: int, end: int) -> bytes:
        """Bytes ``start`` … ``end`` of an object, all of them. Raises as ``Patience``, and as ``client_of``."""

        def attempt() -> bytes:
            data = self._range(name, start, end)
            if len(data) != end - start:
                raise DamagedBody(f"{len(data)} of {end - start} bytes came")
            return data

        return self.patience(f"{self.url}/{name}", attempt)

    def read_whole(self, name: str, max_bytes: int) -> bytes:
        """A small object. Raises as ``read``; one that is longer than ``max_bytes`` is cut there."""
        return self.patience(f"{self.url}/{name}", lambda: self._range(name, 0, max_bytes, True))

    def _range(self, name: str, start: int, end: int, whole: bool = False) -> bytes:
        """One request."""
        self.patience.counts.add("requests")
        client = client_of(self.url)
        data = client.read_beginning(name, end) if whole else client.read_range(name, start, end)
        self.patience.counts.add("bytes", len(data))
        return data


def transport_errors() -> tuple[type[BaseException], ...]:
    """What reading a store may raise, of the libraries that are in use."""
    classes = [getattr(sys.modules.get(module), name, None) for module, name in ERROR_CLASSES]
    return OSError, EOFError, http.client.HTTPException, *[found for found in classes if found is not None]


def final_kind(error: BaseException) -> str | None:
    """``missing`` or ``forbidden`` where asking again brings nothing, else None."""
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, PermissionError):
        return "forbidden"
    return FINAL_STATUSES.get(status) if isinstance(status, int) else None
