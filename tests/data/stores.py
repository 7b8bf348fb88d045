"""Stores for tests, on this machine: a real S3 server (moto's), web servers with and without ranges, odd answers."""

from __future__ import annotations

import functools
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "word", "AWS_DEFAULT_REGION": "us-east-1"}
Answer = Callable[[BaseHTTPRequestHandler], tuple[int, dict[str, str], bytes]]


class _Whole(SimpleHTTPRequestHandler):
    """Sends whole files, whatever range is asked for."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing: a request is no news."""


class _Ranges(_Whole):
    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        asked = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not path.is_file() or not asked:
            super().do_GET()
            return
        data, first = path.read_bytes(), int(asked[1])
        part = data[first : int(asked[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


@contextmanager
def _serving(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)  # type: ignore[arg-type]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def web(folder: Path, *, ranges: bool) -> Iterator[int]:
    """A folder over http; the port."""
    with _serving(functools.partial(_Ranges if ranges else _Whole, directory=str(folder))) as port:
        yield port


@contextmanager
def answering(answer: Answer) -> Iterator[int]:
    """A server that says what ``answer`` returns for a request: status, headers, body; the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answer(self)
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with _serving(Handler) as port:
        yield port


@contextmanager
def s3_server() -> Iterator[int]:
    """moto's server, which keeps objects in memory; the port."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()[1]
    finally:
        server.stop()


def fill_bucket(port: int, folder: Path) -> str:
    """A new bucket with a folder's files below ``分片/``; the URL of them."""
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        region_name=KEYS["AWS_DEFAULT_REGION"],
    )
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"  # clients are kept by their URL
    client.create_bucket(Bucket=bucket)
    for path in folder.iterdir():
        client.put_object(Bucket=bucket, Key=f"分片/{path.name}", Body=path.read_bytes())
    return f"s3://{bucket}/分片"


def point_to(monkeypatch: pytest.MonkeyPatch, port: int, *, keys: bool = True) -> None:
    """What botocore reads of the environment: this server, and nothing of the machine's own settings."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", *KEYS):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    for name, value in KEYS.items() if keys else ():
        monkeypatch.setenv(name, value)
