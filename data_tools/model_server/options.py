"""The options of every command that asks a model server."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from data_tools.execution.shard_work import WORK
from data_tools.model_server.client import ModelServer


@dataclass(frozen=True)
class ServerOptions:
    """Which server and model to ask, and how much of it. Budgets are None where there is no limit."""

    server: str | None = None  # the address, up to and with /v1
    model: str | None = None
    concurrency: int = 16
    timeout_seconds: float = 120.0
    max_retries: int = 6
    budget_requests: int | None = None
    budget_tokens: int | None = None
    max_tokens: int = 512
    temperature: float = 0.0
    stream: bool = False
    api_key_variable: str = "OPENAI_API_KEY"

    def connect(self, out: str | Path) -> ModelServer:
        """The server; limit and budget hold over all workers that write to ``out``.

        Raises:
            ValueError: the address or the model's name is missing.
        """
        if not self.server:
            raise ValueError("--server is missing; give the server's address, as http://HOST:PORT/v1")
        if not self.model:
            raise ValueError("--model is missing; give the model's name as the server lists it under /v1/models")
        return ModelServer(
            self.server,
            self.model,
            concurrency=self.concurrency,
            timeout_seconds=self.timeout_seconds,
            max_retries=self.max_retries,
            budget_requests=self.budget_requests,
            budget_tokens=self.budget_tokens,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            stream=self.stream,
            shared_folder=Path(out) / WORK / "server",
            api_key_variable=self.api_key_variable,
        )


def add_server_arguments(parser: argparse.ArgumentParser, max_tokens: int = 512) -> None:
    """The options of `ServerOptions` but the address, which each command names where it fits."""
    group = parser.add_argument_group("model server")
    group.add_argument("--model", help="its name on the server")
    group.add_argument("--concurrency", type=int, default=16, help="requests at a time, of all workers (default: 16)")
    group.add_argument("--timeout-seconds", type=float, default=120.0, help="for one answer (default: 120)")
    group.add_argument("--max-retries", type=int, default=6, help="of a request that failed (default: 6)")
    group.add_argument("--budget-requests", type=int, help="stop when the job has sent this many, over all its runs")
    group.add_argument("--budget-tokens", type=int, help="stop when the answers have used this many")
    group.add_argument("--max-tokens", type=int, default=max_tokens, help="of one answer (default: %(default)s)")
    group.add_argument("--temperature", type=float, default=0.0, help="(default: 0)")
    group.add_argument("--stream", action="store_true", help="ask for streams: for proxies that cut silent connections")
    group.add_argument("--api-key-variable", default="OPENAI_API_KEY", metavar="NAME", help="(default: OPENAI_API_KEY)")
