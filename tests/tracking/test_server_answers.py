"""What a tracking server sends is bounded in length and time, and goes to no other host."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.tracking import server_answers
from pipeline.tracking.store import quieten_mlflow

RUN = {"run": {"info": {"run_id": "a" * 32, "status": "FINISHED"}, "data": {"tags": [{"key": "名", "value": "值"}]}}}


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b" " * 65536)


def slow(handler: BaseHTTPRequestHandler) -> None:
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def unpacking(handler: BaseHTTPRequestHandler) -> None:
    handler.send_header("Content-Encoding", "gzip")
    handler.end_headers()
    handler.wfile.write(gzip.compress(b" " * (64 << 20)))


def elsewhere(handler: BaseHTTPRequestHandler) -> None:
    handler.send_header("Location", "http://127.0.0.2:9/\x1b[2J")
    handler.end_headers()


def whole(handler: BaseHTTPRequestHandler) -> None:
    handler.end_headers()
    handler.wfile.write(json.dumps(RUN, ensure_ascii=False).encode())


@contextmanager
def serving(body, status: int = 200) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            try:
                body(self)
            except OSError:
                pass  # the client has gone, as it should

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def bounds(monkeypatch):
    monkeypatch.setattr(server_answers, "MAX_ANSWER_BYTES", 1 << 20)
    monkeypatch.setattr(server_answers, "MAX_ANSWER_SECONDS", 0.3)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    quieten_mlflow()


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (endless, 200, "takes more than 1 MiB"),
        (endless, 400, "takes more than 1 MiB"),
        (slow, 200, "takes more than 0.3 s"),
        (unpacking, 200, "compressed (gzip)"),
        (elsewhere, 302, "sends requests on to http://127.0.0.2:9/"),
        (elsewhere, 307, "sends requests on to http://127.0.0.2:9/"),
    ],
)
def test_an_answer_beyond_the_bounds_is_an_error_of_the_store(body, status, words):
    with serving(body, status) as address, pytest.raises(MlflowException) as caught:
        MlflowClient(address).get_run("a" * 32)
    assert words in str(caught.value) and "\x1b" not in str(caught.value)


def test_an_ordinary_answer_is_read_as_it_is():
    with serving(whole) as address:
        assert MlflowClient(address).get_run("a" * 32).data.tags == {"名": "值"}
