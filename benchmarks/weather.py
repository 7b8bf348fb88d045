"""An asyncio proxy before a store, on this machine alone: latency, bandwidth a connection, faults, and absence.

``Weather(port).start()`` runs it in a thread and gives its port; ``weather_apart`` in a process of its own, on a core
that it shares with the store and not with what is measured. A request may meet one of eight faults, which come in
turn: refused (the connection is closed before an answer), reset in mid-body, cut body, stalled body, 503, 500, 429,
wrong bytes. HTTP/1.1 with Content-Length is all that it speaks: what S3 servers and clients do with whole objects and
ranges.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.managers import BaseManager

FAULTS = ("refused", "reset", "cut", "stalled", "503", "500", "429", "wrong_bytes")
REASONS = {"503": "Slow Down", "500": "Internal Server Error", "429": "Too Many Requests"}
CHUNK = 64 << 10
STALL_SECONDS = 60.0  # longer than any client waits
ERRORS = (ConnectionError, asyncio.IncompleteReadError, OSError)


@dataclass
class Weather:
    """A proxy to ``127.0.0.1:port``. Its fields may be changed while it runs."""

    port: int
    latency_seconds: float = 0.0
    bytes_a_second: float = float("inf")  # of each connection
    fault_share: float = 0.0
    faults: tuple[str, ...] = FAULTS
    absent: bool = False  # every connection is refused, also those that are open
    seed: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def start(self) -> int:
        """Listen on a free port of the loopback device; which one."""
        self._draws, self._kinds = random.Random(self.seed), itertools.cycle(self.faults)
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        found: list[int] = []

        async def serve() -> None:
            server = await asyncio.start_server(self._client, "127.0.0.1", 0)
            found.append(server.sockets[0].getsockname()[1])
            ready.set()

        def run() -> None:
            asyncio.set_event_loop(self._loop)
            self._task = self._loop.create_task(serve())
            self._loop.run_forever()

        self._thread = threading.Thread(target=run, name="weather", daemon=True)
        self._thread.start()
        ready.wait(30)
        return found[0]

    def stop(self) -> None:
        """End it, with all connections."""

        async def end() -> None:
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def change(self, **fields: float) -> None:
        """Set some of the fields, from another process too."""
        for name, value in fields.items():
            setattr(self, name, value)

    def counted(self) -> Counter[str]:
        """The counts until now, from another process too."""
        return self.counts.copy()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not self.absent:
                request = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(_length(request))
                if self.absent or not await self._answer(request, body, writer):
                    break
        except ERRORS:
            return  # the client has gone, or the store
        finally:
            writer.close()

    async def _answer(self, request: bytes, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection lives on."""
        self.counts["requests"] += 1
        await asyncio.sleep(self.latency_seconds)
        fault = next(self._kinds) if self._draws.random() < self.fault_share else None
        if fault:
            self.counts[fault] += 1
        if fault == "refused":
            return False
        if fault in REASONS:
            writer.write(f"HTTP/1.1 {fault} {REASONS[fault]}\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
            return True
        upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            upstream.write(request + body)
            head = await upstream_reader.readuntil(b"\r\n\r\n")
            left = 0 if request.startswith(b"HEAD") else _length(head)
            writer.write(head)
            spoil, sent = (left // 2 if fault else -1), 0
            while left:
                data = await upstream_reader.read(min(CHUNK, left))
                if not data:
                    return False
                left, sent = left - len(data), sent + len(data)
                if fault and sent > spoil >= 0:
                    spoil = -1
                    if fault == "stalled":
                        await asyncio.sleep(STALL_SECONDS)
                        return False
                    if fault in ("reset", "cut"):
                        if fault == "reset":
                            writer.transport.abort()
                        return False
                    data = bytes([data[0] ^ 1]) + data[1:]
                writer.write(data)
                await writer.drain()
                self.counts["bytes"] += len(data)
                if self.bytes_a_second < float("inf"):
                    await asyncio.sleep(len(data) / self.bytes_a_second)
            await writer.drain()
            return b"connection: close" not in head.lower()
        finally:
            upstream.close()


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0


class _Apart(BaseManager):
    pass


_Apart.register("Weather", Weather, exposed=("start", "stop", "change", "counted"))


@contextmanager
def weather_apart(port: int, cores: set[int]) -> Iterator[Weather]:
    """A proxy to ``127.0.0.1:port`` in a process of its own on some cores: its methods, not its fields."""
    manager = _Apart()
    manager.start(os.sched_setaffinity, (0, cores))
    try:
        yield manager.Weather(port)  # type: ignore[attr-defined]  # registered above
    finally:
        manager.shutdown()
