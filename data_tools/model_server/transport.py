"""One request to an OpenAI-compatible server through the ``openai`` package, and bounds on what comes back.

The package speaks the protocol (vLLM, SGLang, llama.cpp, hosted servers, Azure's ``/openai/v1``) and honours the
proxies of the environment. What a server sends is not trusted: bodies have a limit, compressed ones are refused (a
few kilobytes can unpack to gigabytes), redirects are not followed (the images would go to another host), and an answer
is read through a typed schema. Trying again is the caller's business (``client.py``).
"""

from __future__ import annotations

import asyncio
import email.utils
import functools
import math
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError, Omit
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_tools.model_server.faults import TransportFault
from pipeline.base.border import shown

# 409 is what some gateways answer while a model is being loaded; 425 and 408 ask for another try by definition.
RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
# These do not depend on the request's content: every other request would fail the same way.
HOPELESS_STATUS = frozenset({401, 402, 403, 404, 405})
# A caption of 20,000 characters is 80 kB; a stream repeats some 300 bytes of envelope for every token.
MAX_ANSWER_BYTES = 8 << 20
MAX_LINE_BYTES = 1 << 20  # of a stream; an event holds a token or a few
MAX_ERROR_BYTES = 64 << 10
MAX_TOKENS = 10**9  # of one answer; more is damage, and would spend every budget at once


@dataclass(frozen=True)
class Completion:
    """What a server answered; ``tokens`` is what it says the request used, 0 where it does not say."""

    text: str
    finish_reason: str | None
    tokens: int


class _Bad(Exception):
    """A body that must not be read on."""


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)
    content: str | None = None


class _Choice(BaseModel):
    model_config = ConfigDict(strict=True)
    message: _Part | None = None
    delta: _Part | None = None
    finish_reason: str | None = None


class _Usage(BaseModel):
    model_config = ConfigDict(strict=True)
    total_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)


class _Answer(BaseModel):
    """A chat completion, or one event of its stream."""

    model_config = ConfigDict(strict=True)
    choices: list[_Choice] = []
    usage: _Usage | None = None

    @property
    def tokens(self) -> int:
        return (self.usage.total_tokens if self.usage else None) or 0


@functools.cache
def _certificates() -> ssl.SSLContext:
    """The trusted authorities, SSL_CERT_FILE honoured; reading them takes longer than a short answer."""
    return httpx2.create_ssl_context()


class ChatTransport:
    """Connections to one server; open while the event loop runs that they were made in."""

    def __init__(self, base_url: str, api_key: str | None, timeout_seconds: float) -> None:
        self.timeout_seconds = timeout_seconds
        # The package wants a key; a server without one gets no header.
        self._headers: dict[str, Any] = {} if api_key else {"Authorization": Omit()}
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=api_key or "none",
            default_headers={"Accept-Encoding": "identity"},
            max_retries=0,  # the caller counts every try against the budget
            timeout=None,  # one limit for the whole answer, in `ask`
            http_client=openai.DefaultAsyncHttpxClient(
                verify=_certificates(),
                follow_redirects=False,
                limits=httpx2.Limits(max_connections=None),  # the slots are the limit
                event_hooks={"response": [_bounded]},
            ),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def ask(self, body: dict[str, Any], *, stream: bool) -> Completion:
        """One chat completion, as a whole or as a stream that is put together.

        Raises:
            TransportFault: whatever went wrong; nothing else is raised for what a server does.
        """
        try:
            async with asyncio.timeout(self.timeout_seconds):
                return await (self._streamed(body) if stream else self._whole(body))
        except (TimeoutError, APITimeoutError) as error:
            reason = f"no whole answer within {self.timeout_seconds:g} seconds"
            raise TransportFault("time_out", reason, retry=True) from error
        except APIStatusError as error:
            raise _status_fault(error.response) from error
        except APIConnectionError as error:
            raise _connection_fault(error.__cause__ or error) from error
        except httpx2.HTTPError as error:
            raise _connection_fault(error) from error
        except _Bad as error:
            raise TransportFault("bad_body", str(error), retry=True) from error
        except (APIError, ValidationError, ValueError, RecursionError) as error:
            # Any of these means a body that is not the protocol's: proxies send pages of HTML with status 200.
            reason = shown(error)
            message = f"the body is no chat completion ({type(error).__name__}: {reason})"
            raise TransportFault("bad_body", message, retry=True) from error

    async def _whole(self, body: dict[str, Any]) -> Completion:
        response = await self._client.chat.completions.with_raw_response.create(**body, extra_headers=self._headers)
        answer = _Answer.model_validate_json(response.http_response.content)
        choice = answer.choices[0] if answer.choices else None
        if choice is None or choice.message is None:
            raise _Bad("the answer has no message")
        return Completion(choice.message.content or "", choice.finish_reason, answer.tokens)

    async def _streamed(self, body: dict[str, Any]) -> Completion:
        parts: list[str] = []
        finish_reason, tokens, done = None, 0, False
        async with self._client.chat.completions.with_streaming_response.create(
            **body, stream=True, stream_options={"include_usage": True}, extra_headers=self._headers
        ) as response:
            async for payload in _payloads(response.http_response):
                if payload == b"[DONE]":
                    done = True
                    break
                event = _Answer.model_validate_json(payload)
                tokens += event.tokens
                for choice in event.choices[:1]:  # the last event only tells the usage
                    parts.append((choice.delta.content if choice.delta else None) or "")
                    finish_reason = choice.finish_reason or finish_reason
        if not done and finish_reason is None:
            raise _Bad("the stream ended before its last event")
        return Completion("".join(parts), finish_reason, tokens)


async def _payloads(response: httpx2.Response) -> AsyncIterator[bytes]:
    """What stands behind ``data:`` in each line of a stream; comments and blank lines keep the connection alive.

    The package's own reader makes objects without checking types, and takes a minute for 8 MiB of empty events.
    """
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
        if len(rest) > MAX_LINE_BYTES:
            raise _Bad(f"a line of the stream has more than {MAX_LINE_BYTES >> 10} KiB")
    if rest.startswith(b"data:"):
        yield rest[5:].strip()


class _BoundedStream(httpx2.AsyncByteStream):
    """A body up to ``limit`` bytes. Beyond it an error's body ends, and an answer is refused."""

    def __init__(self, stream: httpx2.AsyncByteStream, limit: int, is_error: bool) -> None:
        self._stream, self._limit, self._is_error = stream, limit, is_error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        seen = 0
        async for chunk in self._stream:
            seen += len(chunk)
            if seen > self._limit and self._is_error:
                yield chunk[: len(chunk) - (seen - self._limit)]
                return
            if seen > self._limit:
                raise _Bad(f"the answer has more than {self._limit >> 20} MiB, which no caption needs")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _bounded(response: httpx2.Response) -> None:
    """A hook on every response, before a byte of its body is read."""
    is_error = not response.is_success
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding != "identity":
        if not is_error:
            raise _Bad(f"the answer is compressed ({shown(encoding, 40)}), which was not asked for")
        del response.headers["Content-Encoding"]  # an error's body is shown as it came, or not at all
    stream = response.stream
    if not isinstance(stream, httpx2.AsyncByteStream):
        raise TypeError(f"an asynchronous response has a stream of type {type(stream).__name__}")
    response.stream = _BoundedStream(stream, MAX_ERROR_BYTES if is_error else MAX_ANSWER_BYTES, is_error)


def _status_fault(response: httpx2.Response) -> TransportFault:
    status = response.status_code
    if status in RETRIED_STATUS:
        wait = retry_after(response.headers.get("Retry-After"))
        return TransportFault(
            f"status_{status}", f"HTTP {status} {shown(response.reason_phrase, 40)}", retry=True, wait_seconds=wait
        )
    text = shown(response.text)
    if 300 <= status < 400:
        target = shown(response.headers.get("Location", "no address"), 200)
        message = f"HTTP {status}: it sends requests on to {target}, and images go nowhere else than where you said"
        return TransportFault(f"status_{status}", f"{message}; give the final address as --server", hopeless=True)
    return TransportFault("rejected", f"HTTP {status}: {text}", hopeless=status in HOPELESS_STATUS)


def _connection_fault(cause: BaseException) -> TransportFault:
    if isinstance(cause, _Bad):
        return TransportFault("bad_body", str(cause), retry=True)
    reason = shown(cause)
    if isinstance(cause, httpx2.RemoteProtocolError | httpx2.ReadError):
        return TransportFault("bad_body", f"the answer broke off ({reason})", retry=True)
    return TransportFault("connection", f"{type(cause).__name__}: {reason}", retry=True)


def retry_after(value: str | None) -> float | None:
    """Seconds to wait from a Retry-After header, a number or an HTTP date; None where it is neither, or not finite."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError, OSError):  # no date, or one that no clock can show
            return None
        return max(0.0, seconds)
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
