"""Fetches in the background what this rank will read next, where sources are remote.

One thread walks the plan ahead of training and lists what this rank needs for each step: its own pieces, and
single samples of others. Others fetch, several at once, in the order of need. The cache's locks keep the ranks of a
machine, their workers and these threads from fetching twice. What is not there in time is fetched by whoever needs it.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence

from pipeline.data.cache import CachedFolder
from pipeline.data.plan import Plan
from pipeline.data.reader import ReadFault, ShardReader
from pipeline.data.shard_index import IndexProblem
from pipeline.data.share import Need, NodeShare
from pipeline.data.transport import StoreUnavailable

BATCHES_AHEAD = 256  # steps that are looked at, at most, where all they need is there already
REMEMBERED = 100_000  # needs that were seen to; older ones are looked up again


class Prefetcher:
    """``at`` says where training is; ``close`` ends it."""

    def __init__(
        self,
        share: NodeShare,
        rank: int,
        make_readers: Callable[[], Sequence[ShardReader]],
        connections: int,
        ahead_bytes: float,
        give_up: Callable[[], None],
    ) -> None:
        """
        Args:
            share: of this machine, with a plan of its own.
            make_readers: one reader a source, for one thread.
            connections: needs that are fetched at one time.
            ahead_bytes: stop when this much was fetched that training has not come to.
            give_up: called when the store was away for too long.
        """
        self._give_up = give_up
        self._share, self._rank, self._make_readers = share, rank, make_readers
        self._connections, self._ahead_bytes = connections, ahead_bytes
        self._current, self._next = -1, 0
        self._ahead: deque[tuple[int, int]] = deque()  # step, new bytes that it needs
        self._condition = threading.Condition()
        self._tasks: queue.Queue[Need | None] = queue.Queue(maxsize=4 * connections)
        self._threads: list[threading.Thread] = []
        self._closed = False

    def at(self, step: int) -> None:
        """Training asks for batches of ``step``."""
        with self._condition:
            self._current, self._next = step, max(self._next, step)
            while self._ahead and self._ahead[0][0] < step:
                self._ahead.popleft()
            self._condition.notify_all()
            if not self._threads:
                self._start()

    def close(self) -> None:
        """Stop after what is being fetched."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def _start(self) -> None:
        targets = [self._walk, *[self._fetch] * self._connections]
        self._threads = [threading.Thread(target=one, name="prefetch", daemon=True) for one in targets]
        for thread in self._threads:
            thread.start()

    def _walk(self) -> None:
        """List needs in order, as long as not too much lies ahead of training."""
        plan, readers = self._share.plan, self._make_readers()
        seen: dict[tuple[int, int, int, tuple[int, ...]], None] = {}
        while (step := self._turn()) is not None:
            new_bytes = 0
            for need in rank_needs(self._share, plan, self._rank, step):
                name = (need.source, need.shard, need.piece, () if need.whole else need.ordinals)
                if name in seen or not isinstance(readers[need.source].store, CachedFolder):
                    continue
                seen[name] = None
                new_bytes += bytes_of(self._share, need)
                self._tasks.put(need)
                if self._closed:
                    break
            while len(seen) > REMEMBERED:
                seen.pop(next(iter(seen)))
            with self._condition:
                self._ahead.append((step, new_bytes))
                self._next = max(self._next, step + 1)
        for _ in range(self._connections):
            self._tasks.put(None)

    def _turn(self) -> int | None:
        """The next step to look at, when it may be; None at the end."""
        with self._condition:
            while not self._closed:
                ahead = sum(length for _, length in self._ahead)
                if ahead < self._ahead_bytes and self._next - self._current < BATCHES_AHEAD:
                    return self._next
                self._condition.wait()
        return None

    def _fetch(self) -> None:
        readers = self._make_readers()
        while (need := self._tasks.get()) is not None:
            if self._closed:
                continue
            try:
                fetch_need(readers[need.source], need)
            except StoreUnavailable:
                self._give_up()  # the workers, which may wait for this very piece, say what happened
            except (ReadFault, IndexProblem, OSError):
                continue  # who reads a sample of it meets the same error, and counts it under the sample's name


def rank_needs(share: NodeShare, plan: Plan, rank: int, step: int) -> list[Need]:
    """What a rank reads for a step."""
    batch = plan.batch(*plan.locate(step))
    slices = share.division.read_by(len(batch), rank, batch.patch_budget, batch.frames)
    return [need for part in slices for need in share.needs(batch, part)]


def bytes_of(share: NodeShare, need: Need) -> int:
    """Bytes that fetching a need takes; of single samples, their number times the mean of their piece."""
    pieces = share.manifests[need.source].pieces
    place = int(pieces.first[need.shard]) + need.piece
    length = int(pieces.end[place] - pieces.start[place])
    return length if need.whole else length * len(need.ordinals) // max(1, int(pieces.counts[place].sum()))


def fetch_need(reader: ShardReader, need: Need) -> None:
    """Have a need in the cache. Raises ``ReadFault``, ``StoreUnavailable``."""
    store = reader.store
    if not isinstance(store, CachedFolder):
        return
    piece, first_row, rows = reader.rows_of(need.shard, need.piece)
    if need.whole:
        with reader.naming(piece.name):
            store.fetch_piece(piece, rows)
        return
    for ordinal in need.ordinals:
        row = reader.row(need.shard, need.language, ordinal)
        if not store.has(piece):
            with reader.naming(piece.name):
                store.fetch_sample(piece, rows, row - first_row, *reader.extent(rows, row - first_row))
