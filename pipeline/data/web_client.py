"""Objects of web servers: ranges of them through urllib3, one attempt a call, for any number of threads."""

from __future__ import annotations

import errno
import re
import time
import urllib.request
from base64 import b64encode
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import urllib3

from pipeline.base.border import shown

CONNECT_SECONDS = 10.0
STALL_SECONDS = 20.0  # without a byte
SLOWEST_BYTES_PER_SECOND = 1 << 20  # a request below this rate is given up
POOL_CONNECTIONS = 64  # kept open for the next request
READ_BYTES = 256 << 10
ERROR_BYTES = 4096  # of an answer that says what is wrong
FINAL_STATUSES = {401: "forbidden", 403: "forbidden", 404: "missing", 410: "missing"}
# How often a request is made, and after which pause, is decided in one place for all stores: data/transport.py.
_ONLY_REDIRECTS = urllib3.Retry(
    None, connect=False, read=False, other=0, status=0, redirect=5, respect_retry_after_header=False
)
_PARTIAL = re.compile(r"bytes (\d+)-")
_REASON = re.compile(rb"<Code>([^<]*)</Code>(?:.*?<Message>([^<]*)</Message>)?", re.DOTALL)


class StoreError(OSError):
    """A store's answer that is neither bytes, nor that an object is missing or forbidden. ``status``."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class HttpClient:
    """Objects of a web server. A user and password in the URL are sent as basic authentication."""

    redirects = True
    hint = ""  # to those who are refused

    def __init__(self, url: str) -> None:
        parts = urllib3.util.parse_url(url)
        if not parts.host:
            raise ValueError("it names no host; give http://HOST/FOLDER")
        self._headers = {"Authorization": _basic(parts.auth)} if parts.auth else {}
        self._url = parts._replace(auth=None).url.rstrip("/") + "/"
        self._pool = make_pool(self._url)

    def read_range(self, name: str, start: int, end: int) -> bytes:
        return self._read(name, start, end, {"Range": f"bytes={start}-{end - 1}"})

    def read_beginning(self, name: str, max_bytes: int) -> bytes:
        return self._read(name, 0, max_bytes, {})

    def _read(self, name: str, start: int, end: int, headers: dict[str, str]) -> bytes:
        response = self._ask(name, headers)
        try:
            if response.status not in (200, 206):
                raise _refusal(name, response, self.hint)
            skipped = start - _first_byte(response)  # a server without ranges sends the whole object
            if skipped < 0:
                raise StoreError(response.status, f"a part from byte {start - skipped} on, not from {start}")
            data = _read_body(response, skipped + end - start)
            return data[skipped:] if skipped else data
        finally:
            if response.connection is not None:  # there is more to come that nobody wants
                response.close()
                response.release_conn()

    def _ask(self, name: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        return self._get(self._url + quote(name), self._headers | headers)

    def _get(self, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=STALL_SECONDS)
        try:
            return self._pool.request(
                "GET", url, headers=headers, preload_content=False, timeout=timeout, retries=_ONLY_REDIRECTS,
                redirect=self.redirects,
            )  # fmt: skip
        except urllib3.exceptions.MaxRetryError as error:  # its message would hold the URL that a redirect signed
            raise error.reason or StoreError(0, "it could not be asked") from None


def make_pool(url: str, **options: Any) -> urllib3.PoolManager:
    """Connections to a store, through the proxy that the environment names for it."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.hostname or ""):
        return urllib3.PoolManager(maxsize=POOL_CONNECTIONS, **options)
    auth = urllib3.util.parse_url(proxy).auth
    headers = {"Proxy-Authorization": _basic(auth)} if auth else None
    return urllib3.ProxyManager(proxy, proxy_headers=headers, maxsize=POOL_CONNECTIONS, **options)


def _basic(auth: str) -> str:
    """The header's value for ``user:password`` as in a URL."""
    return f"Basic {b64encode(unquote(auth).encode()).decode()}"


def _first_byte(response: urllib3.BaseHTTPResponse) -> int:
    """Of the object, in this body. Not every server of ranges says 206."""
    found = _PARTIAL.match(response.headers.get("content-range", ""))
    if response.status == 206 and not found:
        raise StoreError(206, f"a part of an object of range {response.headers.get('content-range')!r}")
    return int(found[1]) if found else 0


def _read_body(response: urllib3.BaseHTTPResponse, most: int) -> bytes:
    """A body, at most so many bytes of it.

    Raises:
        TimeoutError: it comes more slowly than ``SLOWEST_BYTES_PER_SECOND``. urllib3's errors: it is cut, or stalls.
    """
    stated = response.headers.get("content-length", "")
    left = min(most, int(stated)) if stated.isdigit() else most
    deadline = time.monotonic() + STALL_SECONDS + left / SLOWEST_BYTES_PER_SECOND
    parts = []
    while left and (part := response.read1(min(left, READ_BYTES), decode_content=False)):
        parts.append(part)
        left -= len(part)
        if time.monotonic() > deadline:
            raise TimeoutError(f"below {SLOWEST_BYTES_PER_SECOND} bytes a second")
    return b"".join(parts)


def _refusal(name: str, response: urllib3.BaseHTTPResponse, hint: str) -> OSError:
    """What an answer without bytes means, in the store's words where it says any."""
    found = _REASON.search(response.read(ERROR_BYTES, decode_content=False))
    words = [part.decode("utf-8", "replace") for part in found.groups() if part] if found else []
    message = shown(f"status {response.status}: {', '.join(words) or response.reason}")
    kind = FINAL_STATUSES.get(response.status)
    if kind == "missing":
        return FileNotFoundError(errno.ENOENT, message, name)
    if kind == "forbidden":
        return PermissionError(errno.EACCES, message + hint, name)
    return StoreError(response.status, message)
