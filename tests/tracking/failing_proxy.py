"""A proxy before a tracking server that fails in the middle: every kind of request meets every fault of it once."""

from __future__ import annotations

import http.client
import re
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

PAGE = "<html><body>代理 gateway</body></html>".encode()
LEFT_OUT = {"connection", "transfer-encoding", "content-length", "date", "server"}


@dataclass(frozen=True)
class Fault:
    """What the client sees instead of the answer, and whether the server did what was asked."""

    name: str
    forwarded: bool
    status: int | None = None  # None: the connection is cut
    headers: tuple[tuple[str, str], ...] = ()
    share: float = 0.0  # of the true answer that arrives before the cut
    hangs: bool = False  # the connection stays open and nothing comes
    only: str = ""  # met by requests alone whose kind has this in it


REFUSED = Fault("cut before it was passed on", forwarded=False)
SILENT = Fault("done, and no answer", forwarded=True)
TORN = Fault("half of the answer", forwarded=True, share=0.5)
BAD_GATEWAY = Fault("502", forwarded=False, status=502)
UNAVAILABLE = Fault("503 for a year", forwarded=False, status=503, headers=(("Retry-After", "31536000"),))
LATE = Fault("504 of what was done", forwarded=True, status=504)
LOGIN = Fault("a page to log in", forwarded=False, status=302, headers=(("Location", "http://127.0.0.2:9/login"),))
HANGING = Fault("done, and silence", forwarded=True, hangs=True, only="/runs/")


@dataclass
class Proxy:
    """``address`` is what clients are given; ``met`` counts the faults of each kind of request."""

    address: str
    target: str
    faults: Sequence[Fault]
    met: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self, method: str, path: str) -> Fault | None:
        """The next one for requests of this kind; None when they have met all."""
        kind = f"{method} {kind_of(path)}"
        with self.lock:
            number, of_kind = self.met[kind], [fault for fault in self.faults if fault.only in kind]
            if number >= len(of_kind):
                return None
            self.met[kind] += 1
        return of_kind[number]


def kind_of(path: str) -> str:
    """A path without its query and its ids; files are of one kind."""
    path = urlsplit(path).path
    if "/mlflow-artifacts/" in path:
        return "artifacts"
    return re.sub(r"/(m-)?[0-9a-f]{32}", "/ID", path)


@contextmanager
def failing_proxy(target: str, faults: Sequence[Fault]) -> Iterator[Proxy]:
    """A proxy before the server at ``target``, an address without a path."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            asked = self.rfile.read(length) if length else b""
            if self.headers.get("Transfer-Encoding") == "chunked":
                asked = b"".join(self._chunks())
            fault = proxy.next_fault(self.command, self.path)
            if fault is None:
                return self._send(*self._forwarded(asked))
            true = self._forwarded(asked) if fault.forwarded else (0, [], b"")
            if fault.hangs:
                proxy.ended.wait(60)
            if fault.status is not None:
                return self._send(fault.status, [("Content-Type", "text/html"), *fault.headers], PAGE)
            if fault.share:
                self._send(*true, sent=int(fault.share * len(true[2])))
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        def _chunks(self) -> Iterator[bytes]:
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        def _forwarded(self, asked: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            parts = urlsplit(proxy.target)
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in LEFT_OUT | {"host"}}
            connection.request(self.command, self.path, asked or None, headers)
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            return answer.status, [(k, v) for k, v in answer.getheaders() if k.lower() not in LEFT_OUT], body

        def _send(self, status: int, headers: list[tuple[str, str]], body: bytes, sent: int | None = None) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:sent])
            self.wfile.flush()

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                pass  # the client has gone, as it may

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy = Proxy(f"http://127.0.0.1:{server.server_port}", target, faults)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.ended.set()
        server.shutdown()
        server.server_close()
