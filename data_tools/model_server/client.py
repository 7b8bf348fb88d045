"""One client for every OpenAI-compatible server (vLLM, SGLang, llama.cpp, hosted ones).

``async with ModelServer("http://host:8000/v1", "model", concurrency=32) as server: text = await server.complete(...)``

What goes wrong on the way (no connection, time-outs, 408/409/429/5xx, bodies that are no JSON or end too early) is
tried again with growing, random pauses, or after the server's ``Retry-After``. What is wrong with an answer itself
(cut off, empty, not the JSON asked for) is the caller's to judge and is raised as `AnswerFault`.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.model_server.faults import AnswerFault, ServerDown, ServerFault, TransportFault
from data_tools.model_server.limits import SharedLimits
from pipeline.base.border import BorderError, parse_json

if TYPE_CHECKING:
    from data_tools.model_server.transport import ChatTransport, Completion

MAX_RETRY_AFTER_SECONDS = 300.0  # assumption: a server that asks for a longer pause is down for this request
MAX_BACKOFF_SECONDS = 60.0
JSON_ATTEMPTS = 3  # structured output rarely fails, and when it does, mostly once


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
        self.base_url = base_url.rstrip("/")
        self.model = model
        self.timeout_seconds, self.max_retries, self.backoff_seconds = timeout_seconds, max_retries, backoff_seconds
        self.max_tokens, self.temperature, self.stream = max_tokens, temperature, stream
        self.max_failures_in_a_row, self.api_key_variable = max_failures_in_a_row, api_key_variable
        self.limits = SharedLimits(
            concurrency, budget_requests=budget_requests, budget_tokens=budget_tokens, folder=shared_folder
        )
        self._failures_in_a_row = 0
        self._down = ""  # why, once it is known that further requests are pointless
        self._transport: ChatTransport | None = None

    def settings(self) -> dict[str, Any]:
        """What an answer depends on; belongs in the provenance of what is made from it."""
        return {"model": self.model, "max_tokens": self.max_tokens, "temperature": self.temperature}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_transport": None}

    async def __aenter__(self) -> ModelServer:
        from data_tools.model_server.transport import ChatTransport  # --help does without openai's half second

        key = os.environ.get(self.api_key_variable)
        self._transport = ChatTransport(self.base_url, key, self.timeout_seconds)
        return self

    async def __aexit__(self, *exception: object) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.close()

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
                parse_json(text)
            except BorderError as error:
                problem = f"the answer is no JSON ({error}): {text[:120]!r}"
            else:
                return text
        raise AnswerFault("bad_json", problem, text)

    def _body(self, messages: list[dict[str, Any]], json_schema: dict[str, Any] | None, seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": seed,
        }
        if json_schema is not None:
            schema = {"name": "answer", "schema": json_schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    async def _with_retries(self, body: dict[str, Any]) -> str:
        if self._transport is None:
            raise RuntimeError("the server is not open; use 'async with server:' around the calls")
        for attempt in range(self.max_retries + 1):
            try:
                answer = await self._once(self._transport, body)
            except TransportFault as fault:
                last = self._judged(fault)
                if not fault.retry or (fault.wait_seconds or 0) > MAX_RETRY_AFTER_SECONDS:
                    break
                if attempt < self.max_retries:
                    await asyncio.sleep(self._pause(attempt, fault.wait_seconds))
                continue
            self._failures_in_a_row = 0
            return _checked(answer.text, answer.finish_reason)
        raise self._given_up(last, attempt + 1)

    async def _once(self, transport: ChatTransport, body: dict[str, Any]) -> Completion:
        async with self.limits.slot():
            if self._down:  # found out while this request waited for its slot
                raise ServerDown(self._down)
            self.limits.charge_request()
            answer = await transport.ask(body, stream=self.stream)
            self.limits.charge_tokens(answer.tokens)
            return answer

    def _judged(self, fault: TransportFault) -> TransportFault:
        """The fault, unless no other request could go better."""
        if fault.hopeless:
            detail = f"{self.base_url}: {fault}"
            self._down = f"{detail}; check the address, the model's name and {self.api_key_variable}"
            raise ServerDown(self._down) from fault
        return fault

    def _given_up(self, fault: TransportFault, attempts: int) -> ServerFault | ServerDown:
        """What to raise for a request that got no answer."""
        if fault.kind == "rejected":
            return ServerFault("rejected", f"{self.base_url}: {fault}")
        self._failures_in_a_row += 1
        message = f"{self.base_url}: {fault} ({fault.kind}, {attempts} attempts)"
        if fault.wait_seconds is not None and fault.wait_seconds > MAX_RETRY_AFTER_SECONDS:
            message += (
                f"; it asks to wait {fault.wait_seconds:.0f} s, at most {MAX_RETRY_AFTER_SECONDS:.0f} s are waited"
            )
        if self._failures_in_a_row >= self.max_failures_in_a_row:
            self._down = f"{message}; {self._failures_in_a_row} requests failed in a row, so the job stops here"
            return ServerDown(self._down)
        return ServerFault(fault.kind, message)

    def _pause(self, attempt: int, wait_seconds: float | None) -> float:
        backoff = min(self.backoff_seconds * 2**attempt, MAX_BACKOFF_SECONDS) * (0.5 + random.random())
        return backoff if wait_seconds is None else wait_seconds + 0.1 * backoff


def _checked(text: str, finish_reason: str | None) -> str:
    if finish_reason == "length":
        raise AnswerFault("cut_off", "the answer reached max_tokens before its end", text)
    if finish_reason == "content_filter":
        raise AnswerFault("refused", "the server's content filter stopped the answer", text)
    if not text.strip():
        raise AnswerFault("empty", "the answer is empty", text)
    return text.strip()


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
