"""What the host must know of a batch: made on the CPU where the batch is made, so that a step reads nothing back.

Shape letters: B images, R regions, U distinct region texts, H regions with negatives, K negatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.model.layout import ImageLayout, RegionLayout, image_layout, region_layout
from pipeline.model.regions import side_tables

if TYPE_CHECKING:
    from pipeline.data.batch import Batch

# The kinds of rows that losses count over all ranks, in the order in which ranks exchange the numbers.
KINDS = ("short", "long", "region", "hard", "altered")
# Numbers of region texts are rounded up so that few shapes occur: to a multiple of an eighth of the power of two below,
# at most an eighth too many.
BUCKETS_PER_OCTAVE = 8


@dataclass(frozen=True)
class LossRows:
    """The rows that take part in the losses, by number; None: all of them, in order."""

    short: Tensor | None  # [n] int64, into B: images with a short caption
    long: Tensor | None  # [n] int64, into B
    region: Tensor | None  # [N] int64, into R: regions with an area
    hard: Tensor | None  # [h] int64, into H: rows of regions with an area, a true phrase and a negative
    altered: Tensor | None  # [A] int64, into the h * K places for negatives: those that hold one


@dataclass(frozen=True)
class HostFacts:
    """Everything that the host must know of a batch."""

    images: ImageLayout
    regions: RegionLayout
    rows: LossRows
    counts: tuple[int, ...]  # of this rank's rows, in the order of KINDS
    real_patches: int  # without padding
    num_region_texts: int  # U, without padding


def facts_of(batch: Batch, num_region_texts: int | None = None) -> HostFacts:
    """The facts of a batch; reads its tensors, so make them while the batch is on the CPU.

    Args:
        num_region_texts: U, where ``region_ids`` is padded.
    """
    regions = region_layout(batch.boxes, batch.region_image, batch.spatial_shapes)
    grids = batch.spatial_shapes[batch.region_image]
    rows, counts = loss_rows(batch, side_tables(batch.boxes, grids, regions.longest_side, regions.most_samples)[2])
    return HostFacts(
        images=image_layout(batch.spatial_shapes, batch.pixel_attention_mask.shape[1]),
        regions=regions,
        rows=rows,
        counts=counts,
        real_patches=int(batch.pixel_attention_mask.sum()),
        num_region_texts=batch.region_ids.shape[0] if num_region_texts is None else num_region_texts,
    )


def loss_rows(batch: Batch, has_area: Tensor) -> tuple[LossRows, tuple[int, ...]]:
    """The rows of a batch that take part in the losses, and their numbers; ``has_area`` [R] bool. Reads the tensors."""
    hard = has_area[batch.hard_region] & batch.hard_mask[:, 0] & batch.hard_mask[:, 1:].any(dim=1)
    altered = batch.hard_mask[hard][:, 1:].flatten()
    kept = (batch.short_valid, batch.long_valid, has_area, hard, altered)
    counts = tuple(int(keep.sum()) for keep in kept)
    numbers = [
        None if count == len(keep) else keep.nonzero().squeeze(1) for keep, count in zip(kept, counts, strict=True)
    ]
    return LossRows(*numbers), counts


def bucketed(number: int) -> int:
    """``number`` rounded up to one of ``BUCKETS_PER_OCTAVE`` sizes between two powers of two."""
    step = max(1, (1 << max(number - 1, 0).bit_length()) // (2 * BUCKETS_PER_OCTAVE))
    return -(-number // step) * step


def pad_rows(rows: Tensor, number: int) -> Tensor:
    """Rows of 0 up to ``number``."""
    return torch.nn.functional.pad(rows, (0, 0) * (rows.ndim - 1) + (0, number - len(rows)))
