"""Bounds on what a tracking server may send, because MLflow's client reads every answer whole.

MLflow makes its HTTP sessions in one place, which has no setting for this; the sessions get a hook of ``requests``,
which sees each answer before its body is read.

The sessions also repeat fewer requests. MLflow repeats every one whose answer is an error of a proxy or is cut off,
although the server may have done what was asked: a run would be made twice, and one of them never end. Here only what
may be done twice is repeated at once; of the rest the caller first asks the server what became of it.
"""

from __future__ import annotations

import io
import time
from typing import Any
from urllib.parse import urlsplit

import requests
from mlflow.utils import request_utils

from pipeline.base.border import BorderError, shown

# A metric with a point every 10 steps of a million steps has 10 MB of history; three times that is parsed at once.
MAX_ANSWER_BYTES = 32 << 20
MAX_ANSWER_SECONDS = 60.0  # from the first byte to the last; MLflow's own limit is between bytes
CHUNK_BYTES = 64 << 10
REPEATABLE = frozenset({"GET", "HEAD", "PUT"})  # PUT: a file of the same content in the same place


def bound_answers() -> None:
    """From now on MLflow's sessions refuse long, slow and compressed answers and redirects, and repeat no change."""
    make = request_utils._get_request_session
    if getattr(make, "__module__", "") == __name__:
        return

    def session(*arguments: Any, **options: Any) -> requests.Session:
        made = make(*arguments, **options)  # one of MLflow's cached ones
        if bounded not in made.hooks["response"]:
            made.hooks["response"].append(bounded)
            made.headers["Accept-Encoding"] = "identity"
            for adapter in made.adapters.values():
                adapter.max_retries = adapter.max_retries.new(allowed_methods=REPEATABLE)
        return made

    request_utils._get_request_session = session


def bounded(response: requests.Response, **options: Any) -> requests.Response:
    """A hook of ``requests``: the answer with its body read, within the bounds.

    Raises:
        BorderError: too long, too slow, compressed, or a redirect to another host; MLflow makes its own error of it.
    """
    target = response.headers.get("Location") if response.is_redirect else None
    if target is not None and _is_elsewhere(response.url, target):
        response.close()
        raise BorderError(
            f"the tracking server sends requests on to {shown(target)}; give that address if you trust it"
        )
    if options.get("stream"):  # a download, which goes to a file bit by bit
        return response
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding != "identity":  # a few kilobytes can unpack to gigabytes
        response.close()
        raise BorderError(
            f"the tracking server's answer is compressed ({shown(encoding, 40)}), which was not asked for"
        )
    body, raw = io.BytesIO(), response.raw
    end = time.monotonic() + MAX_ANSWER_SECONDS
    while chunk := raw.read1(CHUNK_BYTES, decode_content=False):
        body.write(chunk)
        if body.tell() > MAX_ANSWER_BYTES or time.monotonic() > end:
            response.close()
            limit = f"{MAX_ANSWER_BYTES >> 20} MiB" if body.tell() > MAX_ANSWER_BYTES else f"{MAX_ANSWER_SECONDS:g} s"
            raise BorderError(f"the tracking server's answer takes more than {limit}; look at the server")
    raw.release_conn()
    body.seek(0)
    response.raw = body  # what requests reads now
    return response


def _is_elsewhere(url: str, target: str) -> bool:
    """Another host or port; a relative target, or https on the same host, is not."""
    one, other = urlsplit(url), urlsplit(target)
    if not other.netloc:
        return bool(other.scheme)
    same_port = one.port == other.port or (other.scheme == "https" and other.port in (None, 443))
    return other.scheme not in ("http", "https") or one.hostname != other.hostname or not same_port
