"""One client for every OpenAI-compatible server (vLLM, SGLang, llama.cpp, hosted ones).

``async with ModelServer("http://host:8000/v1", "model", concurrency=32) as server: text = await server.complete(...)``

What goes wrong on the way (no connection, time-outs, 408/409/429/5xx, bodies that are no JSON or end too early) is
tried again with growing, random pauses, or after the server's ``Retry-After``. What is wrong with an answer itself
(cut off, empty, not the JSON asked for) is the caller's to judge and is raised as `AnswerFault`.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import aiohttp

from data_tools.captions.limits import SharedLimits
from data_tools.execution.jobs import StopRun

# 409 is what some gateways answer while a model is being loaded; 425 and 408 ask for another try by definition.
RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
# These do not depend on the request's content: every other request would fail the same way.
HOPELESS_STATUS = frozenset({401, 402, 403, 404, 405})
MAX_RETRY_AFTER_SECONDS = 300.0  # assumption: a server that asks for a longer pause is down
MAX_BACKOFF_SECONDS = 60.0
JSON_ATTEMPTS = 3  # structured output rarely fails, and when it does, mostly once


class ServerFault(RuntimeError):
    """No answer after all attempts. ``kind``: connection, time_out, status_NNN, bad_body; or rejected (HTTP 4xx)."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class ServerDown(StopRun):
    """So many requests failed in a row, or in such a way, that going on is pointless. The job stops and can resume."""


class AnswerFault(ValueError):
    """An answer came but is no use. ``kind``: cut_off, empty, refused, bad_json; ``text`` is what came."""

    def __init__(self, kind: str, message: str, text: str = "") -> None:
        super().__init__(message)
        self.kind, self.text = kind, text


class _Retry(Exception):
    """Try again, not earlier than after ``wait_seconds`` (None: back off)."""

    def __init__(self, kind: str, message: str, wait_seconds: float | None = None) -> None:
        super().__init__(message)
        self.kind, self.wait_seconds = kind, wait_seconds


class ModelServer:
    """Answers of one model behind one server. Can be pickled; connections are opened where they are used.

    ``shared_folder`` makes ``concurrency`` and the budgets hold over all processes that name the same folder.
    The key is read from the environment variable ``api_key_variable`` at each start, so it is never stored.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        concurrency: int = 16,
        timeout_seconds: float = 120.0,
        max_retries: int = 6,
        backoff_seconds: float = 1.0,
        budget_requests: int | None = None,
        budget_tokens: int | None = None,
        max_tokens: int = 512,
        temperature: float = 0.0,
        stream: bool = False,
        max_failures_in_a_row: int = 20,
        shared_folder: str | Path | None = None,
        api_key_variable: str = "OPENAI_API_KEY",
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"server address is {base_url!r}; it must start with http:// or https:// and end in /v1")
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.model = model
        self.timeout_seconds, self.max_retries, self.backoff_seconds = timeout_seconds, max_retries, backoff_seconds
        self.max_tokens, self.temperature, self.stream = max_tokens, temperature, stream
        self.max_failures_in_a_row, self.api_key_variable = max_failures_in_a_row, api_key_variable
        self.limits = SharedLimits(
            concurrency, budget_requests=budget_requests, budget_tokens=budget_tokens, folder=shared_folder
        )
        self._failures_in_a_row = 0
        self._down = ""  # why, once it is known that further requests are pointless
        self._session: aiohttp.ClientSession | None = None

    def settings(self) -> dict[str, Any]:
        """What an answer depends on; belongs in the provenance of what is made from it."""
        return {"model": self.model, "max_tokens": self.max_tokens, "temperature": self.temperature}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}

    async def __aenter__(self) -> ModelServer:
        key = os.environ.get(self.api_key_variable)
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=aiohttp.ClientTimeout(total=self.timeout_seconds),
            connector=aiohttp.TCPConnector(limit=0),  # the slots are the limit
        )
        return self

    async def __aexit__(self, *exception: object) -> None:
        session, self._session = self._session, None
        await session.close()

    async def complete(
        self,
        messages: list[dict[str, Any]],
        json_schema: dict[str, Any] | None = None,
        *,
        seed: int = 0,
        temperature: float | None = None,
    ) -> str:
        """The model's answer to ``messages``; with ``json_schema`` a JSON text that was asked to follow the schema.

        ``temperature`` takes the place of the server's setting, for another try at a bad answer.

        Raises:
            AnswerFault: the answer is cut off, empty, refused or, after three tries, not JSON.
            ServerFault: no answer after ``max_retries`` further attempts, or this request was rejected (HTTP 4xx).
            ServerDown: the address, key or model is wrong, or too many requests failed in a row.
            BudgetSpent: the job's budget is used.
        """
        for attempt in range(JSON_ATTEMPTS if json_schema is not None else 1):
            body = self._body(messages, json_schema, seed + attempt)
            if temperature is not None:
                body["temperature"] = temperature
            text = await self._with_retries(body)
            if json_schema is None:
                return text
            try:
                json.loads(text)
            except json.JSONDecodeError as error:
                problem = f"the answer is no JSON ({error}): {text[:120]!r}"
            else:
                return text
        raise AnswerFault("bad_json", problem, text)

    def _body(self, messages: list[dict], json_schema: dict | None, seed: int) -> dict[str, Any]:
        body = {
            "model": self.model,
            "messages": messages,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": seed,
        }
        if json_schema is not None:
            schema = {"name": "answer", "schema": json_schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body

    async def _with_retries(self, body: dict[str, Any]) -> str:
        if self._session is None:
            raise RuntimeError("the server is not open; use 'async with server:' around the calls")
        for attempt in range(self.max_retries + 1):
            try:
                async with self.limits.slot():
                    if self._down:  # found out while this request waited for its slot
                        raise ServerDown(self._down)
                    self.limits.charge_request()
                    text, finish_reason = await self._once(body)
            except _Retry as fault:
                last = fault
                if attempt < self.max_retries:
                    await asyncio.sleep(self._pause(attempt, fault.wait_seconds))
                continue
            self._failures_in_a_row = 0
            return _checked(text, finish_reason)
        self._failures_in_a_row += 1
        message = f"{self.url}: {last} ({last.kind}, {self.max_retries + 1} attempts)"
        if self._failures_in_a_row >= self.max_failures_in_a_row:
            self._down = f"{message}; {self._failures_in_a_row} requests failed in a row, so the job stops here"
            raise ServerDown(self._down)
        raise ServerFault(last.kind, message)

    def _pause(self, attempt: int, wait_seconds: float | None) -> float:
        backoff = min(self.backoff_seconds * 2**attempt, MAX_BACKOFF_SECONDS) * (0.5 + random.random())
        return backoff if wait_seconds is None else min(wait_seconds, MAX_RETRY_AFTER_SECONDS) + 0.1 * backoff

    async def _once(self, body: dict[str, Any]) -> tuple[str, str | None]:
        try:
            async with self._session.post(self.url, json=body) as response:
                if response.status in RETRIED_STATUS:
                    wait = _retry_after(response.headers.get("Retry-After"))
                    raise _Retry(f"status_{response.status}", f"HTTP {response.status} {response.reason}", wait)
                if response.status >= 400:
                    detail = f"{self.url}: HTTP {response.status}: {(await response.text())[:300]}"
                    if response.status in HOPELESS_STATUS:
                        self._down = f"{detail}; check the address, the model's name and {self.api_key_variable}"
                        raise ServerDown(self._down)
                    raise ServerFault("rejected", detail)
                if self.stream:
                    return await self._read_stream(response)
                text, finish_reason, tokens = _parse_answer(await response.read())
                self.limits.charge_tokens(tokens)
                return text, finish_reason
        except TimeoutError as error:
            raise _Retry("time_out", f"no answer within {self.timeout_seconds:g} seconds") from error
        except aiohttp.ClientPayloadError as error:
            raise _Retry("bad_body", f"the answer broke off ({error})") from error
        except aiohttp.ClientError as error:
            raise _Retry("connection", f"{type(error).__name__}: {error}") from error

    async def _read_stream(self, response: aiohttp.ClientResponse) -> tuple[str, str | None]:
        parts: list[str] = []
        finish_reason, done = None, False
        async for line in response.content:
            line = line.strip()
            if not line.startswith(b"data:"):
                continue  # comments and blank lines keep the connection alive
            payload = line[5:].strip()
            if payload == b"[DONE]":
                done = True
                break
            text, reason, tokens = _parse_answer(payload, part="delta")
            self.limits.charge_tokens(tokens)
            parts.append(text)
            finish_reason = reason or finish_reason
        if not done and finish_reason is None:
            raise _Retry("bad_body", "the stream ended before its last event")
        return "".join(parts), finish_reason


def _parse_answer(body: bytes, part: str = "message") -> tuple[str, str | None, int]:
    """Text, finish reason and tokens used, of a whole answer or of one event of a stream (``part="delta"``)."""
    try:
        answer = json.loads(body)
        tokens = int((answer.get("usage") or {}).get("total_tokens") or 0)
        if part == "delta" and not answer.get("choices"):
            return "", None, tokens  # the last event of a stream only tells the usage
        choice = answer["choices"][0]
        return choice[part].get("content") or "", choice.get("finish_reason"), tokens
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        # Any of these means a body that is not the protocol's: proxies send pages of HTML with status 200.
        raise _Retry("bad_body", f"the body is no chat completion ({type(error).__name__}: {error})") from error


def _checked(text: str, finish_reason: str | None) -> str:
    if finish_reason == "length":
        raise AnswerFault("cut_off", "the answer reached max_tokens before its end", text)
    if finish_reason == "content_filter":
        raise AnswerFault("refused", "the server's content filter stopped the answer", text)
    if not text.strip():
        raise AnswerFault("empty", "the answer is empty", text)
    return text.strip()


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait from a Retry-After header: a number or an HTTP date; None where it is neither."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def gather_answers(
    server: ModelServer, questions: Iterable[Callable[[ModelServer], Awaitable[Any]]]
) -> list[Any | AnswerFault | ServerFault]:
    """Run ``question(server)`` for every question at once (the slots limit them) and return the results in order.

    For code that is not asynchronous. An `AnswerFault` or `ServerFault` takes the place of that question's result.
    `ServerDown`, `BudgetSpent` and any other exception are raised, but only when all questions have ended: requests
    in flight are paid for, and their questions may want to note the answers.
    """

    async def everything() -> list[Any]:
        async with server:
            return await asyncio.gather(*(question(server) for question in questions), return_exceptions=True)

    results = asyncio.run(everything())
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, AnswerFault | ServerFault):
            raise result
    return results
