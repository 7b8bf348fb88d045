"""Limits that all worker processes of a job share: requests in flight, and a budget of requests and tokens.

Both live in a folder of the job. A slot is a locked file, so the operating system gives it back when its holder is
killed; the budget is a small JSON file, so a job that is run again goes on counting where it stopped. On several
machines the folder must lie on a shared file system with working locks (NFS 4, Lustre with ``flock``).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from data_tools.execution.jobs import StopRun
from pipeline.base.border import BorderError, read_bounded, validated
from pipeline.base.files import write_json

# Assumption: an answer takes a second or more, so looking for a free slot this often costs no throughput.
SLOT_POLL_SECONDS = 0.02


_SPENT: TypeAdapter[dict[str, int]] = TypeAdapter(
    dict[Annotated[str, Field(pattern="^(requests|tokens)$")], Annotated[int, Field(strict=True, ge=0)]]
)


class BudgetSpent(StopRun):
    """The job has used the requests or tokens that it was allowed."""


class SharedLimits:
    """At most ``concurrency`` requests at a time and at most a budget in all, over every process that names ``folder``.

    Without a folder the limits hold for this object only.
    """

    def __init__(
        self,
        concurrency: int,
        *,
        budget_requests: int | None = None,
        budget_tokens: int | None = None,
        folder: str | Path | None = None,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; at least one request must be allowed at a time")
        self.concurrency = concurrency
        self.budget_requests, self.budget_tokens = budget_requests, budget_tokens
        self.folder = Path(folder) if folder is not None else None
        self._local = {"requests": 0, "tokens": 0}
        self._gate: asyncio.Semaphore | None = None
        self._gate_loop: asyncio.AbstractEventLoop | None = None

    def __getstate__(
        self,
    ) -> dict[str, Any]:  # a gate belongs to one event loop, so it does not travel to other processes
        return {**self.__dict__, "_gate": None, "_gate_loop": None}

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold one of the ``concurrency`` slots; waits until one is free."""
        loop = asyncio.get_running_loop()
        if self._gate is None or self._gate_loop is not loop:
            # With a folder the gate only lets one task at a time look for a free file; without one it is the limit.
            self._gate = asyncio.Semaphore(self.concurrency if self.folder is None else 1)
            self._gate_loop = loop
        if self.folder is None:
            async with self._gate:
                yield
            return
        async with self._gate:
            descriptor = await self._free_file(self.folder)
        try:
            yield
        finally:
            os.close(descriptor)  # closing gives the lock back

    async def _free_file(self, folder: Path) -> int:
        folder.mkdir(parents=True, exist_ok=True)
        numbers = list(range(self.concurrency))
        while True:
            random.shuffle(numbers)  # processes that start at the same file would queue behind each other
            for number in numbers:
                descriptor = os.open(folder / f"slot-{number:04d}", os.O_CREAT | os.O_RDWR, 0o644)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(descriptor)
                    continue
                return descriptor
            await asyncio.sleep(SLOT_POLL_SECONDS * (0.5 + random.random()))

    def charge_request(self) -> None:
        """Count a request before it is sent.

        Raises:
            BudgetSpent: the budget allows no further request; nothing was counted.
        """
        with self._account() as spent:
            for name, limit in (("requests", self.budget_requests), ("tokens", self.budget_tokens)):
                if limit is not None and spent[name] >= limit:
                    raise BudgetSpent(
                        f"{spent[name]} {name} are used of a budget of {limit}; finished answers are kept, so "
                        f"raise --budget-{name} and run the same command again to go on"
                    )
            spent["requests"] += 1

    def charge_tokens(self, tokens: int) -> None:
        """Count the tokens that an answer says it used."""
        if tokens:
            with self._account() as spent:
                spent["tokens"] += tokens

    def spent(self) -> dict[str, int]:
        """``{"requests": …, "tokens": …}`` used so far by the whole job."""
        with self._account() as spent:
            return dict(spent)

    @contextlib.contextmanager
    def _account(self) -> Iterator[dict[str, int]]:
        if self.folder is None:
            yield self._local
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "spent.json"
        with open(self.folder / "spent.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = _read_spent(path)
            spent = dict(before)
            yield spent
            if spent != before:
                write_json(path, spent, indent=None)


def _read_spent(path: Path) -> dict[str, int]:
    if not path.exists():
        return {"requests": 0, "tokens": 0}
    try:
        return {"requests": 0, "tokens": 0} | validated(_SPENT, read_bounded(path), str(path))
    except BorderError as error:
        raise StopRun(
            f"what the job has spent cannot be read ({error}); write the true numbers there, as "
            '{"requests": 0, "tokens": 0}, or delete the file to count anew from 0'
        ) from error
