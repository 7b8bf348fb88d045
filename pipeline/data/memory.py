"""Memory for batches that loader workers and the training process share, used again and again.

A batch of 128 images at 1,024 patches is 100 MB. Fresh shared memory of that size costs the kernel more time in page
faults than writing the batch, so slots are recycled: a worker takes a free slot and fills it, the training process
looks at the same memory, and the slot is free again when the last tensor that looks at it is gone. Nothing is copied.

Host memory follows the patch budget at hand, not the largest one. Slots have addresses for the largest batch, but pages
only where a batch is or just was: a worker keeps one free slot of the size that it fills now and gives the others back.
And what is read ahead is bounded in bytes, ``ahead_bytes`` over all workers: at high budgets fewer batches are ahead. A
worker of whose batches none waits to be taken may always fill one, so training never waits for one that may not begin.
"""

from __future__ import annotations

import mmap
import os
import time
import weakref
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

FREE, FILLED, HELD = 0, 1, 2  # by nobody; by its worker, not yet taken by training; by training
WAIT_SECONDS = 0.01  # between two looks for room


class BufferPool:
    """``num_slots`` buffers for each worker. Made before the workers are forked."""

    def __init__(self, num_workers: int, num_slots: int, bytes_per_slot: int, ahead_bytes: float) -> None:
        """
        Args:
            bytes_per_slot: of the largest batch.
            ahead_bytes: of batches that are filled and not yet taken, over all workers; each may have one beyond it.
        """
        # Whole pages a slot, so that two processes never write to one cache line.
        self._slot_bytes = _whole_pages(bytes_per_slot)
        self._num_workers, self._num_slots, self.ahead_bytes = max(num_workers, 1), num_slots, ahead_bytes
        count = self._num_workers * num_slots
        # Anonymous shared memory, inherited by fork: it has no name, no file and no part in the size of /dev/shm, and
        # pages that no batch has touched do not exist.
        self._memory = mmap.mmap(-1, count * self._slot_bytes)
        # One byte a slot: only its worker sets FILLED, only the training process the others. The last byte: closed.
        self._states = mmap.mmap(-1, count + 1)
        # Bytes of the batch in a slot, and bytes of the slot that have pages; only its worker writes them.
        self._sizes = np.frombuffer(mmap.mmap(-1, 16 * count), dtype=np.int64).reshape(2, count)
        self._maker = os.getpid()

    @property
    def num_buffers(self) -> int:
        """Over all workers."""
        return self._num_workers * self._num_slots

    def most_bytes(self, batch_bytes: int, num_held: int) -> int:
        """What all slots take at most while batches have ``batch_bytes`` and training holds ``num_held`` of them."""
        # each worker: one filled beyond the bound, and one free slot that it keeps
        ahead = min(self.ahead_bytes, (self._num_slots - 2) * self._num_workers * batch_bytes)
        return int(ahead) + (2 * self._num_workers + num_held) * _whole_pages(batch_bytes)

    def take(self, worker: int, num_bytes: int) -> int | None:
        """A free slot of ``worker`` with room for ``num_bytes``, now used; None where all are still looked at."""
        mine = range(worker * self._num_slots, (worker + 1) * self._num_slots)
        while self._must_wait(mine, num_bytes):
            time.sleep(WAIT_SECONDS)
        free = [slot for slot in mine if self._states[slot] == FREE]
        if not free:
            return None
        sizes, pages = self._sizes
        chosen = max(free, key=lambda slot: min(pages[slot], num_bytes))
        sizes[chosen] = num_bytes
        self._states[chosen] = FILLED
        kept = max(
            (slot for slot in free if slot != chosen), key=lambda slot: min(pages[slot], num_bytes), default=None
        )
        for slot in free:
            self._give_back(slot, num_bytes if slot in (chosen, kept) else 0)
        pages[chosen] = max(pages[chosen], num_bytes)
        return chosen

    def view(self, slot: int, shape: tuple[int, ...]) -> Tensor:
        """A slot's memory for the worker that fills it."""
        return torch.from_numpy(self._array(slot, shape))

    def receive(self, slot: int, shape: tuple[int, ...]) -> Tensor:
        """A slot's memory for the training process; the slot is freed when no tensor of this memory is left."""
        array = self._array(slot, shape)
        self._states[slot] = HELD
        # The tensor's storage holds the array, and views of the tensor hold the storage.
        release = weakref.finalize(array, _free, self._states, slot)
        release.atexit = False
        return torch.from_numpy(array)

    def close(self) -> None:
        """No worker waits for room any more, so that all can end."""
        self._states[self.num_buffers] = 1

    def _must_wait(self, mine: range, num_bytes: int) -> bool:
        """Whether too much lies ahead of training; never where the worker has nothing to be taken."""
        states, sizes = np.frombuffer(self._states, dtype=np.uint8), self._sizes[0]
        filled = states[: self.num_buffers] == FILLED
        if not filled[mine.start : mine.stop].any() or states[self.num_buffers]:
            return False
        if os.getpid() != self._maker and os.getppid() != self._maker:
            return False  # the training process was killed: nobody will take anything
        return bool(sizes[filled].sum() + num_bytes > self.ahead_bytes)

    def _give_back(self, slot: int, kept_bytes: int) -> None:
        """The pages of a free slot beyond ``kept_bytes`` to the operating system."""
        pages, kept = self._sizes[1], _whole_pages(kept_bytes)
        if pages[slot] > kept:
            with suppress(OSError):  # a kernel that cannot keeps them until the end
                length = _whole_pages(int(pages[slot])) - kept
                self._memory.madvise(mmap.MADV_REMOVE, slot * self._slot_bytes + kept, length)
                pages[slot] = kept

    def _array(self, slot: int, shape: tuple[int, ...]) -> np.ndarray:
        count = int(np.prod(shape))
        flat = np.frombuffer(self._memory, dtype=np.uint8, count=count, offset=slot * self._slot_bytes)
        return flat.reshape(shape)


def _whole_pages(num_bytes: int) -> int:
    return -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE


def _free(states: mmap.mmap, slot: int) -> None:
    states[slot] = FREE
