"""This rank's batches, in the plan's order, endlessly over the epochs, from any step on.

The position is one number, the global optimizer step: resuming at step n is planning batch n. A unit of work is a
whole micro-batch of this rank; loader workers take them in turn and hand them back in order, so their number changes
speed and nothing else.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from pipeline.base.ranks import loader_workers
from pipeline.config import DataSettings
from pipeline.data.batch import Batch
from pipeline.data.cache import check_remote
from pipeline.data.collate import Collator, PixelBuffer
from pipeline.data.faults import DataFaultLimit, check_share
from pipeline.data.images import ImageFault
from pipeline.data.manifest import IndexProblem, Manifest, load_manifest
from pipeline.data.memory import BufferPool
from pipeline.data.patches import PATCH_VALUES
from pipeline.data.plan import Plan, PlannedBatch, rank_slice
from pipeline.data.prefetch import Prefetcher
from pipeline.data.reader import RawSample, ReadFault, ShardReader
from pipeline.data.share import NodeShare
from pipeline.data.sources import Sources
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.transport import Patience, StoreCounts, StoreUnavailable

HELD_BATCHES = 3  # slots a worker beside those read ahead: one being filled, and what the training step still holds
MAX_ATTEMPTS = 64  # replacements tried for one slot; with half of all samples lost, 64 fail once in 10^19
TERM_GRACE_SECONDS = 40.0  # more than the 30 that DeepSpeed's launcher waits before it sends SIGKILL
log = logging.getLogger(__name__)


class Shipped(NamedTuple):
    """A batch on its way from a worker: its pixels are in ``slot`` of the pool, or in the batch where it is None."""

    batch: Batch
    slot: int | None
    shape: tuple[int, ...]


class Failed(NamedTuple):
    """What ended the work of a worker: raised again, as one line, in the training process."""

    error: type[DataFaultLimit] | type[StoreUnavailable]
    message: str


class MicroBatches(Dataset):
    """Micro-batch ``i`` of this rank: part ``i % accumulation_steps`` of global batch ``i // accumulation_steps``."""

    def __init__(
        self,
        plan: Plan,
        collator: Collator,
        rank: int,
        world_size: int,
        accumulation_steps: int,
        sources: Sources,
        num_workers: int,
    ) -> None:
        self.plan, self.sources, self.collator, self.settings = plan, sources, collator, collator.settings
        self.num_workers = num_workers
        self.rank, self.world_size, self.accumulation_steps = rank, world_size, accumulation_steps
        largest = plan.batch_size // (world_size * accumulation_steps) * max(plan.patch_budgets) * PATCH_VALUES
        self.pool = BufferPool(num_workers, self.settings.prefetch_batches + HELD_BATCHES, largest)
        self._readers: list[ShardReader] = []
        self._process: int | None = None
        self._planned: tuple[tuple[int, int], PlannedBatch] | None = None

    def __getitem__(self, index: int) -> Shipped | Failed:
        try:
            return self._batch(index)
        except (DataFaultLimit, StoreUnavailable) as error:
            return Failed(type(error), str(error))

    def _batch(self, index: int) -> Shipped:
        step, part = divmod(index, self.accumulation_steps)
        planned = self._plan_of(self.plan.locate(step))
        mine = rank_slice(len(planned), self.rank, self.world_size, part, self.accumulation_steps)
        slots = range(mine.start, mine.stop)
        shape = (len(slots), planned.patch_budget, PATCH_VALUES)
        worker = get_worker_info()
        buffer = self.pool.take(worker.id if worker else 0)
        values = torch.empty(shape, dtype=torch.uint8) if buffer is None else self.pool.view(buffer, shape)
        pixels = PixelBuffer(values, self.settings)
        replaced: Counter[str] = Counter()
        raws = [self._read(planned, slot, place, pixels, replaced) for place, slot in enumerate(slots)]
        keys, samples = [raw.key for raw in raws], [raw.sample for raw in raws]
        batch = self.collator(pixels, keys, samples, planned.epoch, dict(replaced))
        # The way to the training process is by slot number; torch would copy the pixels to fresh memory.
        return Shipped(batch, None, shape) if buffer is None else Shipped(_without_pixels(batch), buffer, shape)

    def close(self) -> None:
        for reader in self._readers:
            reader.close()
        self._readers = []

    def _plan_of(self, place: tuple[int, int]) -> PlannedBatch:
        if self._planned is None or self._planned[0] != place:
            self._planned = (place, self.plan.batch(*place))
        return self._planned[1]

    def _read(
        self, planned: PlannedBatch, slot: int, place: int, pixels: PixelBuffer, replaced: Counter[str]
    ) -> RawSample:
        """The sample of a slot with its image put into ``pixels``, or the first replacement that can be read."""
        entry = int(planned.shards[slot]), int(planned.ordinals[slot])
        for attempt in range(MAX_ATTEMPTS):
            shard, key = "?", "?"
            try:
                raw = self._read_entry(*entry, planned.language)
                shard, key = raw.shard, raw.key
                pixels.put(place, raw.image, raw.sample.width, raw.sample.height)
                return raw
            except ReadFault as fault:
                kind, message = fault.kind, str(fault)
            except ImageFault as fault:
                kind, message = fault.kind, f"{shard}: {key}: {fault.kind}: {fault}"
            replaced[kind] += 1
            log.warning("epoch %d batch %d slot %d is replaced: %s", planned.epoch, planned.number, slot, message)
            entry = self.plan.replacement(planned, slot, attempt)
        raise DataFaultLimit(
            f"epoch {planned.epoch} batch {planned.number} slot {slot}: {MAX_ATTEMPTS} samples in a row cannot be read "
            f"(last: {message}); check the shards with `python -m data_tools verify`"
        )

    def _read_entry(self, shard: int, ordinal: int, language: str) -> RawSample:
        source, number = self.plan.source_of(shard)
        reader = self._readers_here()[source]
        return reader.read(number, reader.row(number, language, ordinal))

    def _readers_here(self) -> list[ShardReader]:
        if self._process != os.getpid():  # a forked worker must not share its parent's file positions
            self._readers, self._process = self.sources.readers(), os.getpid()
        return self._readers


class _From(Sampler):
    """``start``, ``start`` + 1, … without end."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start)


class Loader:
    """Iterates over this rank's batches. Made by ``make_loader``; close it, or use it as a context."""

    def __init__(self, batches: MicroBatches, start_step: int) -> None:
        self._batches, self._settings, self.plan = batches, batches.settings, batches.plan
        self._next_index = start_step * batches.accumulation_steps
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

    def __next__(self) -> Batch:
        """
        Raises:
            DataFaultLimit: the share of faulty samples is above ``max_fault_share``.
            StoreUnavailable: a remote store was away for longer than ``store_patience_seconds``.
        """
        if self._iterator is None:
            self._iterator = iter(self._torch_loader())
        if self._prefetcher is not None:
            self._prefetcher.at(self._next_index)
        batch = self._receive(next(self._iterator))
        self._next_index += 1
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
    def buffer_bytes(self) -> int:
        """Host memory that batches read ahead take at most, over all workers."""
        return self._batches.pool.num_bytes

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
            sampler=_From(self._next_index),
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
    micro_batch_size: int,
    rank: int,
    world_size: int,
    start_step: int = 0,
    accumulation_steps: int = 1,
    with_regions: bool = False,
    of_negatives: Mapping[str, float] | None = None,
    local_world_size: int | None = None,
) -> Loader:
    """The micro-batches of ``rank``, in order, from global optimizer step ``start_step`` on.

    Args:
        text_lengths: tokens of short (and region) texts, and of long ones.
        micro_batch_size: images a rank and micro-batch; times ranks and accumulation it is the global batch.
        of_negatives: losses that have members only where regions have negatives, with their weights.
        local_world_size: ranks on this machine, neighbours among all; None: ``rank`` is alone there.

    Raises:
        IndexProblem: shards, index, weights or sizes that do not fit, each with its remedy.
    """
    slices = world_size * accumulation_steps
    if global_batch_size % slices or global_batch_size // slices != micro_batch_size:
        raise IndexProblem(
            f"a global batch of {global_batch_size} is not {world_size} ranks x {accumulation_steps} micro-batches x "
            f"{micro_batch_size} images; change train.global_batch_size or train.accumulation_steps"
        )
    if settings.keep_last_batch and settings.last_batch_multiple % slices:
        raise IndexProblem(
            f"data.last_batch_multiple is {settings.last_batch_multiple}; a kept last batch must divide among "
            f"{world_size} ranks x {accumulation_steps} accumulation steps, so make it a multiple of {slices}"
        )
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
    share = NodeShare(plan.copy(), manifests, rank // here * here, here, world_size, accumulation_steps)
    sources = Sources(manifests, settings, share)
    workers = loader_workers(settings.num_workers, here)
    return Loader(MicroBatches(plan, collator, rank, world_size, accumulation_steps, sources, workers), start_step)


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


def _without_pixels(batch: Batch) -> Batch:
    return replace(batch, pixel_values=torch.empty(0))


def _as_it_is(shipped: Any) -> Any:
    return shipped


def prepare_worker(_: int) -> None:
    """Let the training process decide: it ends its workers itself, after the checkpoint that a signal asks for.

    Ctrl-C reaches the whole process group, and DeepSpeed's launcher sends SIGTERM to every process below it. A worker
    that died of either would fail the step in hand. It ends a while after SIGTERM all the same, so that it
    does not outlive a parent that is killed.
    """

    def end_later(number: int, frame: object) -> None:
        timer = threading.Timer(TERM_GRACE_SECONDS, os._exit, [128 + number])
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_later)
