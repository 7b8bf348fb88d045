"""Memory for batches that loader workers and the training process share, used again and again.

A batch of 128 images at 1,024 patches is 100 MB. Fresh shared memory of that size costs the kernel more time in page
faults than writing the batch, so slots are recycled: a worker takes a free slot and fills it, the training process
looks at the same memory, and the slot is free again when the last tensor that looks at it is gone. Nothing is copied
and nobody waits: a worker that finds no free slot falls back to fresh memory.
"""

from __future__ import annotations

import mmap
import weakref

import numpy as np
import torch
from torch import Tensor


class BufferPool:
    """``num_slots`` buffers of ``bytes_per_slot`` for each worker. Made before the workers are forked."""

    def __init__(self, num_workers: int, num_slots: int, bytes_per_slot: int) -> None:
        # Whole pages a slot, so that two processes never write to one cache line.
        self._slot_bytes = -(-bytes_per_slot // mmap.PAGESIZE) * mmap.PAGESIZE
        self._num_slots = num_slots
        count = max(num_workers, 1) * num_slots
        # Anonymous shared memory, inherited by fork: it has no name, no file and no part in the size of /dev/shm, and
        # pages that no batch was large enough to touch do not exist.
        self._memory = mmap.mmap(-1, count * self._slot_bytes)
        # One byte a slot: only its worker sets it, only the training process clears it.
        self._used = mmap.mmap(-1, count)

    @property
    def num_buffers(self) -> int:
        """Over all workers."""
        return len(self._used)

    @property
    def num_bytes(self) -> int:
        """What all slots take once they have been filled to their end."""
        return len(self._memory)

    def take(self, worker: int) -> int | None:
        """A free slot of ``worker``, now used; None where all are still looked at."""
        for slot in range(worker * self._num_slots, (worker + 1) * self._num_slots):
            if not self._used[slot]:
                self._used[slot] = 1
                return slot
        return None

    def view(self, slot: int, shape: tuple[int, ...]) -> Tensor:
        """A slot's memory for the worker that fills it."""
        return torch.from_numpy(self._array(slot, shape))

    def receive(self, slot: int, shape: tuple[int, ...]) -> Tensor:
        """A slot's memory for the training process; the slot is freed when no tensor of this memory is left."""
        array = self._array(slot, shape)
        # The tensor's storage holds the array, and views of the tensor hold the storage.
        release = weakref.finalize(array, _clear, self._used, slot)
        release.atexit = False
        return torch.from_numpy(array)

    def _array(self, slot: int, shape: tuple[int, ...]) -> np.ndarray:
        count = int(np.prod(shape))
        flat = np.frombuffer(self._memory, dtype=np.uint8, count=count, offset=slot * self._slot_bytes)
        return flat.reshape(shape)


def _clear(used: mmap.mmap, slot: int) -> None:
    used[slot] = 0
