"""Who asks a store for bytes: a client for each kind of URL. One attempt a call; for any number of threads.

S3 and http(s) are asked through urllib3: fsspec's clients for them (s3fs, aiohttp) are coroutines of one thread, which
hand every 64 kB to it, and take two to three times the processor time (docs/data.md). All other protocols are fsspec's.
"""

from __future__ import annotations

import os
import threading
from typing import Protocol

from pipeline.base.border import one_line, shown
from pipeline.data import web_client
from pipeline.data.problem import IndexProblem
from pipeline.data.web_client import HttpClient

# By process and URL: a client of S3 takes half a second of a core to make, and connections are of one process. Locks
# are by process too: one that another thread held at a fork would stay held in the child.
_CLIENTS: dict[tuple[int, str], ObjectClient] = {}
_MAKING: dict[int, threading.Lock] = {}


class ObjectClient(Protocol):
    """Reads the objects under one URL, each call with one attempt.

    Both raise FileNotFoundError and PermissionError where asking again brings nothing, and else what
    ``transport.transport_errors`` names.
    """

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Bytes ``start`` … ``end`` of an object, fewer where it ends before."""

    def read_beginning(self, name: str, max_bytes: int) -> bytes:
        """A whole object, or its first ``max_bytes``."""


def client_of(url: str) -> ObjectClient:
    """The client of this process for a URL, made when it is first asked for, and anew after a fork.

    Raises:
        IndexProblem: a URL that nothing here can open, or whose package is not installed.
    """
    place = os.getpid(), url
    if place not in _CLIENTS:
        with _MAKING.setdefault(os.getpid(), threading.Lock()):
            if place not in _CLIENTS:
                _CLIENTS[place] = _make_client(url)
    return _CLIENTS[place]


def _make_client(url: str) -> ObjectClient:
    protocol = url.partition("://")[0]
    try:
        if protocol in ("s3", "s3a"):
            from pipeline.data.s3_client import S3Client  # botocore is of an extra, and takes 0.3 s to import

            return S3Client(url)
        return HttpClient(url) if protocol in ("http", "https") else FsspecClient(url)
    except (ImportError, ValueError) as error:
        remedy = '; install it: pip install "fine-grained-vlm[s3]"' if "botocore" in str(error) else ""
        raise IndexProblem(f"{shown(url)} cannot be opened: {one_line(error)}{remedy}") from error


class FsspecClient:
    """Objects of any other protocol that fsspec knows."""

    def __init__(self, url: str) -> None:
        import fsspec  # half a second that shards on a disk do without

        self._filesystem, path = fsspec.core.url_to_fs(url, skip_instance_cache=True)
        self._root = path.rstrip("/")

    def read_range(self, name: str, start: int, end: int) -> bytes:
        return self._read(name, (end - start) / web_client.SLOWEST_BYTES_PER_SECOND, start, end)

    def read_beginning(self, name: str, max_bytes: int) -> bytes:
        return self._read(name, 0.0, None, None)[:max_bytes]

    def _read(self, name: str, seconds: float, start: int | None, end: int | None) -> bytes:
        path, place = f"{self._root}/{name}", {"start": start, "end": end}
        if not getattr(self._filesystem, "async_impl", False):
            return self._filesystem.cat_file(path, **place)
        from fsspec.asyn import sync  # as in `__init__`

        limit = web_client.CONNECT_SECONDS + web_client.STALL_SECONDS + seconds
        return sync(self._filesystem.loop, self._filesystem._cat_file, path, timeout=limit, **place)
