"""Batches on the device ahead of need.

A thread takes batches from the loader, pins them and copies them on a stream of its own, while the step before is
still being computed; the training loop only waits for an event. On CPUs batches are taken as they are.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch

from pipeline.data.batch import Batch
from pipeline.data.micro_batches import Unit


class Source(Protocol):
    """A loader: micro-batches without end, each known before it is read."""

    def upcoming(self) -> Unit: ...

    def __next__(self) -> Batch: ...


@dataclass(frozen=True)
class _OnItsWay:
    unit: Unit
    batch: Batch  # on the device once ``copied`` has passed
    copied: torch.cuda.Event


class DeviceFeed:
    """Iterates over the batches of ``loader`` on ``device``, in their order. Close it before the loader."""

    def __init__(self, loader: Source, device: torch.device, ahead: int = 1) -> None:
        """``ahead``: batches that are copied before they are asked for; on CPUs none are."""
        self._loader, self._device, self._ahead = loader, device, ahead
        self._coming: deque[Future[_OnItsWay]] = deque()
        self._thread: ThreadPoolExecutor | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            # One thread, so that batches keep their order; a future carries the loader's errors to who asks for it.
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="device-feed")

    def __iter__(self) -> DeviceFeed:
        return self

    def __enter__(self) -> DeviceFeed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def upcoming(self) -> Unit:
        """Which micro-batch the next call of ``next`` gives; on a GPU once it has been read."""
        if self._thread is None:
            return self._loader.upcoming()
        self._ask(self._thread)
        return self._coming[0].result().unit

    def __next__(self) -> Batch:
        """The next batch; its tensors may be used on the current stream at once. Errors are those of the loader."""
        if self._thread is None:
            return next(self._loader)
        self._ask(self._thread)
        found = self._coming.popleft().result()
        current = torch.cuda.current_stream(self._device)
        current.wait_event(found.copied)
        for tensor in found.batch.every_tensor():
            tensor.record_stream(current)  # its memory is not given away while this stream still reads it
        return found.batch

    def close(self) -> None:
        """Wait for the batch that is being fetched, and end the thread."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _ask(self, thread: ThreadPoolExecutor) -> None:
        while len(self._coming) <= self._ahead:
            self._coming.append(thread.submit(self._fetch))

    def _fetch(self) -> _OnItsWay:
        unit = self._loader.upcoming()
        pinned = next(self._loader).pin_memory()
        with torch.cuda.stream(self._stream):
            batch = pinned.to(self._device)
            copied = torch.cuda.Event()
            copied.record(self._stream)
        return _OnItsWay(unit, batch, copied)
