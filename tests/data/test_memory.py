"""Memory of batches: used again, given back, and bounded in bytes by what is read, never so that nobody can go on."""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import threading

import numpy as np
import pytest

from pipeline.data.memory import BufferPool

PAGE = mmap.PAGESIZE
LARGE, SMALL = 64 * PAGE, 4 * PAGE


def pages(pool: BufferPool) -> list[int]:
    """Bytes with pages, slot by slot, as the pool counts them."""
    return pool._sizes[1].tolist()


def resident(pool: BufferPool) -> int:
    """Bytes that the kernel says this mapping has in memory."""
    address = np.frombuffer(pool._memory, dtype=np.uint8).ctypes.data
    with open("/proc/self/smaps", encoding="ascii") as file:
        inside = False
        for line in file:
            if "-" in line.split(" ", 1)[0] and not line.split(" ", 1)[0].endswith(":"):
                low, high = (int(part, 16) for part in line.split(" ", 1)[0].split("-"))
                inside = low <= address < high
            elif inside and line.startswith("Rss:"):
                return int(line.split()[1]) * 1024
    raise AssertionError("the mapping is not listed")


def fill(pool: BufferPool, num_bytes: int, worker: int = 0):
    slot = pool.take(worker, num_bytes)
    pool.view(slot, (num_bytes,)).fill_(slot + 1)
    return pool.receive(slot, (num_bytes,))


def test_a_batch_is_what_was_written_and_its_slot_is_used_again_when_nobody_looks():
    pool = BufferPool(1, 3, LARGE, 10 * LARGE)
    held = [fill(pool, LARGE) for _ in range(3)]
    assert [int(batch[0]) for batch in held] == [1, 2, 3] and pool.take(0, LARGE) is None
    view = held[1][5:]
    del held[1]
    gc.collect()
    assert pool.take(0, LARGE) is None, "a view holds its slot"
    del view
    gc.collect()
    assert pool.take(0, LARGE) == 1 and [int(batch[0]) for batch in held] == [1, 3]


def test_memory_follows_the_batches_at_hand():
    """After batches of the largest size, small ones leave no memory of the large ones behind but what they need."""
    pool = BufferPool(1, 5, LARGE, 100 * LARGE)
    held = [fill(pool, LARGE) for _ in range(5)]
    assert resident(pool) == 5 * LARGE
    held.clear()
    gc.collect()
    for _ in range(4):
        batch = fill(pool, SMALL)
        assert (batch == batch[0]).all()
        del batch
    gc.collect()
    assert sum(pages(pool)) <= 2 * SMALL and resident(pool) <= 2 * SMALL
    assert pool.most_bytes(SMALL, 1) < pool.most_bytes(LARGE, 1)
    again = fill(pool, LARGE)
    assert again.shape == (LARGE,) and (again == again[0]).all()


def test_equal_batches_take_no_new_pages():
    pool = BufferPool(1, 4, LARGE, 100 * LARGE)
    for _ in range(20):
        batch = fill(pool, LARGE)
        before = pages(pool)
        del batch
    gc.collect()
    assert pages(pool) == before and sum(before) == LARGE


@pytest.mark.parametrize("num_workers", [1, 3])
def test_no_more_bytes_are_ahead_than_allowed_and_one_of_each_worker(num_workers):
    pool = BufferPool(num_workers, 6, LARGE, 4 * SMALL)
    for worker in range(num_workers):
        assert pool.take(worker, LARGE) is not None, "a worker with nothing to be taken never waits"
    waiting = threading.Thread(target=pool.take, args=(0, SMALL))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive(), "it has one, and the bytes are used up"
    taken = [pool.receive(worker * 6, (LARGE,)) for worker in range(num_workers)]
    waiting.join(30)
    assert not waiting.is_alive() and len(taken) == num_workers


def _fill_endlessly(pool: BufferPool, filled) -> None:
    for _ in range(3):
        pool.take(0, LARGE)
        with filled.get_lock():
            filled.value += 1


def test_closing_ends_a_worker_that_waits_for_room():
    pool, context = BufferPool(1, 6, LARGE, LARGE), multiprocessing.get_context("fork")
    filled = context.Value("i", 0)
    worker = context.Process(target=_fill_endlessly, args=(pool, filled))
    worker.start()
    worker.join(0.3)
    assert worker.is_alive() and filled.value <= 1
    pool.close()
    worker.join(30)
    assert worker.exitcode == 0 and filled.value == 3
