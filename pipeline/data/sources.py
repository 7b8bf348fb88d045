"""The sources of a run as one process reads them: local folders, or remote ones through the cache of this machine."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from functools import partial

from pipeline.config import DataSettings
from pipeline.data.cache import CachedFolder, LocalFolder, Piece, ShardStore, check_remote
from pipeline.data.manifest import Manifest
from pipeline.data.reader import ShardReader
from pipeline.data.shard_index import IndexProblem
from pipeline.data.share import NodeShare
from pipeline.data.transport import Patience, StoreCounts, Transport


class Sources:
    """Makes readers. Made before loader workers are forked, so that all processes of a rank count in one place."""

    def __init__(self, manifests: Sequence[Manifest], settings: DataSettings, share: NodeShare) -> None:
        """
        Raises:
            IndexProblem: a remote source without a cache, or a cache that is too small for the plan.
        """
        self.manifests, self.settings, self.share = manifests, settings, share
        self.is_remote = any("://" in manifest.folder for manifest in manifests)
        self.counts = StoreCounts()
        self.max_bytes = self._cache_bytes() if self.is_remote else 0
        self._gave_up = mmap.mmap(-1, 1)
        patience = Patience(settings.store_patience_seconds, self.counts, lambda: bool(self._gave_up[0]))
        # One for all readers of a process: a client of S3 takes a second of a core to make.
        self._transports = {m.folder: Transport(m.folder, patience) for m in manifests if "://" in m.folder}

    def readers(self) -> list[ShardReader]:
        """One a source, for one thread of one process."""
        return [
            ShardReader(manifest, self._store(n), self.share.plan.levels) for n, manifest in enumerate(self.manifests)
        ]

    def give_up(self) -> None:
        """Tell all processes of this rank that the store was away for too long: they wait no more."""
        self._gave_up[0] = 1

    def _store(self, source: int) -> ShardStore:
        folder = self.manifests[source].folder
        if "://" not in folder:
            return LocalFolder(folder)
        cache, is_home = self.settings.cache_folder or ".", partial(self._is_home, source)
        return CachedFolder(self._transports[folder], cache, self.max_bytes, is_home)

    def _is_home(self, source: int, piece: Piece) -> bool:
        return self.share.is_home(source, piece.shard, piece.number)

    def _cache_bytes(self) -> int:
        settings = self.settings
        for manifest in self.manifests:
            check_remote(manifest.folder, settings.cache_folder)
        needed = self.share.cache_bytes(settings.prefetch_gigabytes * 1e9)
        if settings.cache_gigabytes is None:
            return needed
        if settings.cache_gigabytes * 1e9 < needed:
            raise IndexProblem(
                f"data.cache_gigabytes is {settings.cache_gigabytes:g} and this plan needs {needed / 1e9:.3g} on each "
                "machine, or shards would be fetched again and again; raise it or set it to null, or lower "
                "data.prefetch_gigabytes, data.window_shards or train.global_batch_size"
            )
        return int(settings.cache_gigabytes * 1e9)
