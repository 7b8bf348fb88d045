"""This rank's batches, in the plan's order, endlessly over the epochs, from any step on.

The position is one number, the global optimizer step: resuming at step n is planning batch n. A unit of work is a
micro-batch of this rank (pipeline/data/slices.py says how many a step has); loader workers take them in turn and hand
them back in order, so their number changes speed and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.utils.data import DataLoader

from pipeline.base.ranks import loader_workers
from pipeline.config import DataSettings
from pipeline.data.batch import Batch
from pipeline.data.cache import check_remote
from pipeline.data.collate import Collator
from pipeline.data.faults import check_share
from pipeline.data.manifest import IndexProblem, Manifest, load_manifest
from pipeline.data.micro_batches import MicroBatches, Shipped, Unit
from pipeline.data.plan import Plan
from pipeline.data.plan.largest import largest_step
from pipeline.data.prefetch import Prefetcher
from pipeline.data.share import NodeShare
from pipeline.data.slices import Division
from pipeline.data.sources import Sources
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.transport import Patience, StoreCounts
from pipeline.data.workers import Failed, prepare_worker


class Loader:
    """Iterates over this rank's batches. Made by ``make_loader``; close it, or use it as a context."""

    def __init__(self, batches: MicroBatches, start_step: int) -> None:
        self._batches, self._settings, self.plan = batches, batches.settings, batches.plan
        self._next = batches.units_of(start_step)[0]
        self._iterator: Iterator[Shipped | Failed] | None = None
        self._prefetcher = _make_prefetcher(batches) if batches.sources.is_remote else None
        self._faults: Counter[str] = Counter()
        self._samples = 0

    def __iter__(self) -> Loader:
        return self

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start_at(self, step: int) -> None:
        """Begin with the first micro-batch of ``step``; only before the first one is read.

        Raises:
            RuntimeError: micro-batches have been read.
        """
        if self._iterator is not None:
            raise RuntimeError(f"a loader that was read from cannot begin at step {step}; make another one")
        self._next = self._batches.units_of(step)[0]

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

    def upcoming(self) -> Unit:
        """Which micro-batch the next call of ``next`` gives; without reading it."""
        return self._next

    def __next__(self) -> Batch:
        """This rank's next micro-batch, which may be empty.

        Raises:
            DataFaultLimit: the share of faulty samples is above ``max_fault_share``.
            StoreUnavailable: a remote store was away for longer than ``store_patience_seconds``.
            OSError, ValueError: a worker met one; its message is one line.
        """
        if self._iterator is None:
            self._iterator = iter(self._torch_loader())
        if self._prefetcher is not None:
            self._prefetcher.at(self._next.step)
        batch = self._receive(next(self._iterator))
        if self._next.part + 1 < self._next.parts:
            self._next = self._next._replace(part=self._next.part + 1)
        else:
            self._next = self._batches.units_of(self._next.step + 1)[0]
        self._samples += len(batch)
        self._faults.update(batch.replaced)
        check_share(self._faults, self._samples, self._settings)
        return batch

    def steps_per_epoch(self, epoch: int = 0) -> int:
        return self.plan.steps_per_epoch(epoch)

    @property
    def num_workers(self) -> int:
        """Decoding processes of this rank; 0: this process decodes."""
        return self._batches.num_workers

    @property
    def num_buffers(self) -> int:
        """Micro-batches that are in host memory at most, over all workers."""
        return self._batches.pool.num_buffers

    @property
    def buffer_bytes(self) -> int:
        """Host memory that batches read ahead take at most, over all workers."""
        return self._batches.pool.num_bytes

    def regions_per_sample(self) -> float:
        """The mean over all samples, of those that are read: at most ``data.max_regions_per_image`` of each."""
        regions = sum(int(manifest.regions.sum()) for manifest in self._batches.sources.manifests)
        samples = sum(int(manifest.samples.sum()) for manifest in self._batches.sources.manifests)
        return min(regions / max(samples, 1), float(self._settings.max_regions_per_image))

    def fault_counts(self) -> dict[str, int]:
        """Faults met by this loader since it was made, by kind."""
        return dict(self._faults)

    def samples_seen(self) -> int:
        """Samples that this rank was given since the loader was made."""
        return self._samples

    def close(self) -> None:
        """End the workers and the prefetching."""
        if self._prefetcher is not None:
            self._prefetcher.close()
        self._iterator = None  # torch's iterator ends its workers when it is let go
        self._batches.close()

    def store_counts(self) -> dict[str, float]:
        """Requests, bytes and retries of this rank's processes at remote stores, since the loader was made."""
        return self._batches.sources.counts.totals()

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


def _check_negatives(manifests: Sequence[Manifest], weights: Mapping[str, float]) -> None:
    """A loss with a weight and no member would be 0 at every step of a run that looks well."""
    weighted = {name: weight for name, weight in weights.items() if weight > 0}
    if weighted and not any(manifest.negatives.any() for manifest in manifests):
        counts = ", ".join(f"{m.folder}: {int(m.regions.sum()):,} regions, 0 negatives" for m in manifests)
        raise IndexProblem(
            f"{', '.join(f'{name} is {weight:g}' for name, weight in weighted.items())}, but no region has a negative "
            f"({counts}), so these losses would be 0 at every step. Make negatives (python -m data_tools negatives "
            "SHARDS --out NEW), build with FG-OVD rows (build coco --fgovd), or set these weights to 0"
        )


def make_loader(
    settings: DataSettings,
    tokenizer: Tokenizer,
    text_lengths: tuple[int, int],
    *,
    seed: int,
    global_batch_size: int,
    rank: int = 0,
    division: Division = Division(),  # noqa: B008 - frozen
    start_step: int = 0,
    with_regions: bool = False,
    of_negatives: Mapping[str, float] | None = None,
    local_world_size: int | None = None,
) -> Loader:
    """The micro-batches of ``rank``, in order, from global optimizer step ``start_step`` on.

    Args:
        text_lengths: tokens of short (and region) texts, and of long ones.
        division: how a global batch is divided among ranks and micro-batches.
        of_negatives: losses that have members only where regions have negatives, with their weights.
        local_world_size: ranks on this machine, neighbours among all; None: ``rank`` is alone there.

    Raises:
        IndexProblem: shards, index or weights that do not fit, each with its remedy.
    """
    manifests = [_manifest(folder, settings) for folder in settings.shards]
    if with_regions and not any(manifest.regions.any() for manifest in manifests):
        raise IndexProblem(
            f"no sample of {', '.join(settings.shards)} has a region, and stage 2 trains on them; "
            "give shards made with boxes (see docs/data_tools.md)"
        )
    if with_regions:
        _check_negatives(manifests, of_negatives or {})
    plan = Plan(manifests, settings, seed, global_batch_size)
    collator = Collator(settings, tokenizer, text_lengths, seed, with_regions)
    here = local_world_size or 1
    share = NodeShare(plan.copy(), manifests, rank // here * here, here, division)
    workers = loader_workers(settings.num_workers, here)
    sources = Sources(manifests, settings, share)
    return Loader(MicroBatches(plan, collator, rank, division, sources, workers), start_step)


def _manifest(folder: str, settings: DataSettings) -> Manifest:
    """A remote one is asked for as patiently as its shards are."""
    check_remote(folder, settings.cache_folder)
    patience = Patience(settings.store_patience_seconds, StoreCounts())
    return patience(folder, lambda: load_manifest(folder, settings.patch_budgets, settings.cache_folder))


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
