"""Fetches the shards that the plan needs next, in the background, where sources are remote."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from pipeline.config import DataSettings
from pipeline.data.cache import CachedFolder, ShardUnavailable, make_store
from pipeline.data.manifest import IndexProblem, Manifest, index_name
from pipeline.data.plan import Plan


class Prefetcher:
    """One thread of the training process; the cache's locks keep it and the loader workers from fetching twice."""

    def __init__(self, plan: Plan, manifests: Sequence[Manifest], settings: DataSettings) -> None:
        self._plan, self._manifests, self._settings = plan, manifests, settings
        # A store is made here and used in the thread alone; workers make their own.
        self._stores = [
            make_store(manifest.folder, settings.cache_folder, settings.cache_gigabytes) for manifest in manifests
        ]
        self._remote = any(isinstance(store, CachedFolder) for store in self._stores)
        self._announced: list[int] = []
        self._wanted: deque[int] = deque()
        self._condition = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def at(self, epoch: int, number: int) -> None:
        """Training is at batch ``number``: fetch its window and ``prefetch_shards`` shards after it."""
        if not self._remote or not self._settings.prefetch_shards:
            return
        shards = self._plan.shards_ahead(epoch, number, self._settings.prefetch_shards).tolist()
        if shards == self._announced:
            return
        with self._condition:
            self._announced, self._wanted = shards, deque(shards)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shard-prefetch", daemon=True)
                self._thread.start()
            self._condition.notify()

    def close(self) -> None:
        """Stop after the shard that is being fetched."""
        with self._condition:
            self._closed = True
            self._condition.notify()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._wanted and not self._closed:
                    self._condition.wait()
                if self._closed:
                    return
                shard = self._wanted.popleft()
            source, number = self._plan.source_of(shard)
            store, manifest = self._stores[source], self._manifests[source]
            if not isinstance(store, CachedFolder):
                continue
            name = manifest.shards[number]
            try:
                store.fetch(index_name(name), 0, manifest.index_sha256[number])
                store.fetch(name, int(manifest.sizes[number]), manifest.sha256[number])
            except (ShardUnavailable, IndexProblem):
                continue  # who reads a sample of it meets the same error, and counts it under the sample's name
