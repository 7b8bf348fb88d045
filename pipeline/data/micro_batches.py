"""The micro-batches of a rank: what a loader's worker makes, one at a time."""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch.utils.data import Dataset, get_worker_info

from pipeline.data.augment import choose_view, seen_sample
from pipeline.data.batch import Batch
from pipeline.data.clips import frame_numbers, sampled
from pipeline.data.collate import Collator, PixelBuffer
from pipeline.data.faults import DataFaultLimit
from pipeline.data.images import ImageFault
from pipeline.data.memory import BufferPool
from pipeline.data.patches import PATCH_VALUES
from pipeline.data.plan import Plan, PlannedBatch
from pipeline.data.reader import RawSample, ReadFault, ShardReader
from pipeline.data.slices import Division
from pipeline.data.sources import Sources
from pipeline.data.workers import KNOWN, Failed, failed

HELD_BATCHES = 3  # slots a worker beside those read ahead: one being filled, and what the training step still holds
MAX_ATTEMPTS = 64  # replacements tried for one slot; with half of all samples lost, 64 fail once in 10^19
log = logging.getLogger(__name__)


class Unit(NamedTuple):
    """Micro-batch ``part`` of ``parts`` of an optimizer step, which has ``size`` samples on all ranks."""

    step: int
    part: int
    parts: int
    size: int


class Shipped(NamedTuple):
    """A batch on its way from a worker: its pixels are in ``slot`` of the pool, or in the batch where it is None."""

    batch: Batch
    slot: int | None
    shape: tuple[int, ...]


class MicroBatches(Dataset):
    """The micro-batches of this rank, each by its :class:`Unit`."""

    def __init__(
        self, plan: Plan, collator: Collator, rank: int, division: Division, sources: Sources, num_workers: int
    ) -> None:
        self.plan, self.sources, self.collator, self.settings = plan, sources, collator, collator.settings
        self.num_workers, self.rank, self.division = num_workers, rank, division
        # a step holds all its micro-batches until its end, unless each is a batch of its own
        frames = plan.levels.clip_frames
        parts = 1 if division.separate else division.most_parts(plan.batch_size, plan.patch_budgets, frames)
        held = HELD_BATCHES + -(-parts // max(1, num_workers)) - 1
        ahead = max(1, num_workers) * self.settings.prefetch_batches
        self.pool = BufferPool(
            num_workers,
            self.settings.prefetch_batches + held,
            max(self.bytes_at(*level) for level in plan.levels.all_used()),
            ahead * self._mean_bytes(),
        )
        self._readers: list[ShardReader] = []
        self._process: int | None = None
        self._planned: tuple[tuple[int, int], PlannedBatch] | None = None

    def bytes_at(self, patch_budget: int, frames: int = 1) -> int:
        """Pixels of the largest micro-batch at a level."""
        return self.division.images(self.plan.batch_size, patch_budget, frames) * patch_budget * PATCH_VALUES

    def most_bytes(self, patch_budget: int) -> int:
        """Host memory of the pool's batches at most, while all are of one patch budget, as images or clips."""
        return max(
            self.pool.most_bytes(self.bytes_at(patch_budget, frames), self._held(patch_budget, frames))
            for frames in (1, *self.plan.levels.clip_frames)
        )

    def _held(self, patch_budget: int, frames: int) -> int:
        parts = 1 if self.division.separate else self.division.parts(self.plan.batch_size, patch_budget, frames)
        return parts + 1

    def _mean_bytes(self) -> float:
        """Of the plan's micro-batches."""
        top = max(self.plan.patch_budgets)
        count, total = 0, 0
        for group in self.plan.group_counts():
            level = group.patch_budget or top, group.frames
            parts = group.samples * self.division.parts(self.plan.batch_size, *level)
            count, total = count + parts, total + parts * self.bytes_at(*level)
        return total / max(1, count)

    def units_of(self, step: int) -> list[Unit]:
        """The micro-batches of a step, alike on all ranks."""
        size, level = self.plan.shape_of(*self.plan.locate(step))
        parts = self.division.parts(size, *level)
        return [Unit(step, part, parts, size) for part in range(parts)]

    def units_from(self, first: Unit) -> Iterator[Unit]:
        """``first`` and those after it, without end."""
        yield from self.units_of(first.step)[first.part :]
        for step in itertools.count(first.step + 1):
            yield from self.units_of(step)

    def __getitem__(self, unit: Unit) -> Shipped | Failed:
        try:
            return self._batch(unit)
        except KNOWN as error:
            return failed(error)

    def _batch(self, unit: Unit) -> Shipped:
        planned = self._plan_of(self.plan.locate(unit.step))
        mine = self.division.part(len(planned), self.rank, unit.part, unit.parts)
        slots = range(mine.start, mine.stop)
        shape = (len(slots) * planned.frames, planned.patch_budget, PATCH_VALUES)
        worker = get_worker_info()
        num_bytes = math.prod(shape)
        buffer = self.pool.take(worker.id if worker else 0, num_bytes) if slots else None
        values = torch.empty(shape, dtype=torch.uint8) if buffer is None else self.pool.view(buffer, shape)
        pixels = PixelBuffer(values, self.settings)
        replaced: Counter[str] = Counter()
        raws = [self._read(planned, slot, place, pixels, replaced) for place, slot in enumerate(slots)]
        keys, samples = [raw.key for raw in raws], [raw.sample for raw in raws]
        batch = self.collator(pixels, keys, samples, planned.epoch, planned.language, dict(replaced), planned.frames)
        # The way to the training process is by slot number; torch would copy the pixels to fresh memory.
        return Shipped(batch, None, shape) if buffer is None else Shipped(_without_pixels(batch), buffer, shape)

    def close(self) -> None:
        self.pool.close()
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
        """The sample of a slot with its images put into ``pixels``, or the first replacement that can be read.

        A fault of one frame is a fault of its clip.
        """
        entry = int(planned.shards[slot]), int(planned.ordinals[slot])
        for attempt in range(MAX_ATTEMPTS):
            shard, key = "?", "?"
            try:
                raw = self._read_entry(*entry, planned.language, planned.frames)
                shard, key = raw.shard, raw.key
                sample, augment = raw.sample, self.settings.augment
                view = choose_view(sample, key, self.collator.seed, planned.epoch, augment) if augment.is_on else None
                for frame, image in enumerate(raw.images):
                    pixels.put(place * planned.frames + frame, image, sample.width, sample.height, view)
                return raw if view is None else replace(raw, sample=seen_sample(sample, view))
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

    def _read_entry(self, shard: int, ordinal: int, language: str, frames: int) -> RawSample:
        """A sample; of a clip, ``frames`` of its frames."""
        source, number = self.plan.source_of(shard)
        reader = self._readers_here()[source]
        raw = reader.read(number, reader.row(number, language, ordinal))
        if raw.sample.frames is None:
            return raw
        chosen = frame_numbers(len(raw.images), frames)
        return replace(raw, images=tuple(raw.images[n] for n in chosen), sample=sampled(raw.sample, chosen))

    def _readers_here(self) -> list[ShardReader]:
        if self._process != os.getpid():  # a forked worker must not share its parent's file positions
            self._readers, self._process = self.sources.readers(), os.getpid()
        return self._readers


def _without_pixels(batch: Batch) -> Batch:
    return replace(batch, pixel_values=torch.empty(0))
