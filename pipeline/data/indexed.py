"""This rank's batches, in the plan's order, endlessly over the epochs, from any step on.

The position is one number, the global optimizer step: resuming at step n is planning batch n. A unit of work is a
micro-batch of this rank (pipeline/data/slices.py says how many a step has); loader workers take them in turn and hand
them back in order, so their number changes speed and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.utils.data import DataLoader

from pipeline.base.ranks import loader_workers
from pipeline.config import DataSettings
from pipeline.data.batch import Batch
from pipeline.data.cache import check_remote
from pipeline.data.manifest import IndexProblem, Manifest, load_manifest
from pipeline.data.micro_batches import MicroBatches, Shipped, Unit
from pipeline.data.plan import Plan
from pipeline.data.plan.largest import largest_step
from pipeline.data.plan.report import untrained_languages
from pipeline.data.prefetch import Prefetcher
from pipeline.data.rank_loader import Loader, Reading, make_collator
from pipeline.data.share import NodeShare
from pipeline.data.sources import Sources
from pipeline.data.transport import Patience, StoreCounts
from pipeline.data.workers import Failed, prepare_worker


class IndexedLoader(Loader):
    """The plan's batches, read by the index."""

    def __init__(self, batches: MicroBatches, start_step: int) -> None:
        super().__init__(batches.settings, batches.units_of(start_step)[0])
        self._batches, self.plan = batches, batches.plan
        self._iterator: Iterator[Shipped | Failed] | None = None
        self._prefetcher = _make_prefetcher(batches) if batches.sources.is_remote else None
        self._is_asked = False  # a call of ``next`` has not returned yet

    def start_at(self, step: int) -> None:
        """Begin with the first micro-batch of ``step``; only before the first one is read.

        Raises:
            RuntimeError: micro-batches have been read.
        """
        if self._iterator is not None:
            raise RuntimeError(f"a loader that was read from cannot begin at step {step}; make another one")
        self._next = self._first(step)

    def largest_step(self) -> int:
        """The step whose micro-batches need most memory, as far as the plan and a local index tell it."""
        batches, settings = self._batches, self._settings
        # A client of a remote store must not be made before the workers are forked.
        counted = batches.collator.with_regions and not batches.sources.is_remote
        readers = batches.sources.readers() if counted else []
        most = settings.max_regions_per_image, settings.max_negatives
        try:
            return largest_step(self.plan.copy(), batches.division, readers, *most)
        finally:
            for reader in readers:
                reader.close()

    def _take(self) -> Batch:
        if self._iterator is None:
            self._iterator = iter(self._torch_loader())
        if self._prefetcher is not None:
            self._prefetcher.at(self._next.step)
        self._is_asked = True
        try:
            return self._receive(next(self._iterator))
        finally:
            self._is_asked = False

    def _first(self, step: int) -> Unit:
        return self._batches.units_of(step)[0]

    def steps_per_epoch(self, epoch: int = 0) -> int:
        return self.plan.steps_per_epoch(epoch)

    @property
    def num_workers(self) -> int:
        return self._batches.num_workers

    @property
    def num_buffers(self) -> int:
        return self._batches.pool.num_buffers

    def buffer_bytes(self, patch_budget: int) -> int:
        return self._batches.most_bytes(patch_budget)

    def regions_per_sample(self) -> float:
        """The mean over all samples, of those that are read: at most ``data.max_regions_per_image`` of each."""
        regions = sum(int(manifest.regions.sum()) for manifest in self._batches.sources.manifests)
        samples = sum(int(manifest.samples.sum()) for manifest in self._batches.sources.manifests)
        return min(regions / max(samples, 1), float(self._settings.max_regions_per_image))

    def plan_notes(self) -> list[str]:
        return untrained_languages(self.plan)

    def store_counts(self) -> dict[str, float]:
        return self._batches.sources.counts.totals()

    def waits_for(self) -> str | None:
        return self._batches.sources.counts.waits.oldest() if self._is_asked else None

    def close(self) -> None:
        if self._prefetcher is not None:
            self._prefetcher.close()
        self._batches.close()  # first: a worker that waits for room could not end
        self._iterator = None  # torch's iterator ends its workers when it is let go

    def _receive(self, shipped: Shipped | Failed) -> Batch:
        if isinstance(shipped, Failed):
            raise shipped.error(shipped.message)
        batch, slot, shape = shipped
        return batch if slot is None else replace(batch, pixel_values=self._batches.pool.receive(slot, shape))

    def _torch_loader(self) -> DataLoader:
        workers = self._batches.num_workers
        return DataLoader(
            self._batches,
            batch_size=None,
            sampler=self._batches.units_from(self._next),
            collate_fn=_as_it_is,
            num_workers=workers,
            prefetch_factor=self._settings.prefetch_batches if workers else None,
            multiprocessing_context="fork" if workers else None,  # the pool's memory is inherited
            worker_init_fn=prepare_worker,
        )


def check_members(manifests: Sequence[Manifest], weights: Mapping[str, float]) -> None:
    """Raise IndexProblem where stage 2 has nothing to train on, or a loss with a weight nobody to be counted over.

    Such a loss would be 0 at every step of a run that looks well.

    Args:
        weights: of the losses whose members are regions with negatives, by the names of their settings.
    """
    if not any(manifest.regions.any() for manifest in manifests):
        raise IndexProblem(
            f"no sample of {', '.join(manifest.folder for manifest in manifests)} has a region, and stage 2 trains on "
            "them; give shards made with boxes (see docs/data_tools.md)"
        )
    weighted = {name: weight for name, weight in weights.items() if weight > 0}
    if weighted and not any(manifest.negatives.any() for manifest in manifests):
        counts = ", ".join(f"{m.folder}: {int(m.regions.sum()):,} regions, 0 negatives" for m in manifests)
        raise IndexProblem(
            f"{', '.join(f'{name} is {weight:g}' for name, weight in weighted.items())}, but no region has a negative "
            f"({counts}), so these losses would be 0 at every step. Make negatives (python -m data_tools negatives "
            "SHARDS --out NEW), build with FG-OVD rows (build coco --fgovd), or set these weights to 0"
        )


def make_indexed_loader(reading: Reading) -> IndexedLoader:
    """The micro-batches of a rank by the plan of its shards.

    Raises:
        IndexProblem: shards, index or weights that do not fit, each with its remedy.
    """
    settings = reading.settings
    manifests = [_manifest(folder, settings) for folder in settings.shards]
    if reading.with_regions:
        check_members(manifests, reading.of_negatives or {})
    plan = Plan(manifests, settings, reading.seed, reading.global_batch_size)
    here = reading.local_world_size or 1
    share = NodeShare(plan.copy(), manifests, reading.rank // here * here, here, reading.division)
    sources = Sources(manifests, settings, share)
    workers = loader_workers(settings.num_workers, here)
    batches = MicroBatches(plan, make_collator(reading), reading.rank, reading.division, sources, workers)
    return IndexedLoader(batches, reading.start_step)


def _manifest(folder: str, settings: DataSettings) -> Manifest:
    """A remote one is asked for as patiently as its shards are."""
    check_remote(folder, settings.cache_folder)
    patience = Patience(settings.store_patience_seconds, StoreCounts())
    return patience(
        folder, lambda: load_manifest(folder, settings.patch_budgets, settings.cache_folder, settings.clip_frames)
    )


def _make_prefetcher(batches: MicroBatches) -> Prefetcher:
    settings, sources = batches.settings, batches.sources
    return Prefetcher(
        sources.share,
        batches.rank,
        sources.readers,
        settings.store_connections,
        settings.prefetch_gigabytes * 1e9,
        sources.give_up,
    )


def _as_it_is(shipped: Any) -> Any:
    return shipped
