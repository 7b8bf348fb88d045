"""The step of an epoch that needs most memory, as far as counts tell it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.data.plan.batches import PlannedBatch
from pipeline.data.plan.plan import Plan
from pipeline.data.reader import ReadFault, ShardReader
from pipeline.data.slices import Division

STEPS_LOOKED_AT = 10_000  # assumption: a patch budget that is not among so many shuffled batches is rare
BATCHES_COUNTED, SAMPLES_COUNTED = 16, 65_536  # whose regions are counted, which reads rows of the index


def largest_step(
    plan: Plan, division: Division, readers: Sequence[ShardReader], max_regions: int, max_negatives: int
) -> int:
    """The step of the first epoch whose micro-batch has the most patches and, among the first such, the most texts.

    Args:
        readers: one a source; empty: the stage reads no regions.
        max_regions, max_negatives: that are read of an image, and of a region.
    """
    shapes: dict[tuple[int, int], list[int]] = {}  # patches of a micro-batch, patch budget -> steps
    for step in range(min(plan.steps_per_epoch(0), STEPS_LOOKED_AT)):
        size, (budget, frames) = plan.shape_of(0, step)
        images = division.images(size, budget, frames)
        shapes.setdefault((images * budget, budget), []).append(step)
    largest = shapes[max(shapes)]
    counted = largest[: max(1, min(BATCHES_COUNTED, SAMPLES_COUNTED // plan.batch_size))]
    if not readers or len(counted) == 1:
        return counted[0]
    return max(counted, key=lambda step: region_texts(plan, plan.batch(0, step), readers, max_regions, max_negatives))


def region_texts(
    plan: Plan, batch: PlannedBatch, readers: Sequence[ShardReader], max_regions: int, max_negatives: int
) -> int:
    """At most so many regions and texts of regions has a batch; a row that cannot be read counts as none."""
    total = 0
    for shard, ordinal in zip(batch.shards, batch.ordinals, strict=True):
        source, number = plan.source_of(int(shard))
        reader = readers[source]
        try:
            row = reader.row(number, batch.language, int(ordinal))
            _, first, index = reader.rows_of(number, reader.manifest.pieces.of_row(number, row))
        except ReadFault:  # training replaces such a sample and counts it
            continue
        regions = int(np.minimum(index.num_regions[row - first], max_regions))
        total += regions + int(np.minimum(index.num_negatives[row - first], regions * max_negatives))
    return total
