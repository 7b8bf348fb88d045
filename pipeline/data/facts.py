"""What the host must know of a batch: made on the CPU where the batch is made, so that a step reads nothing back.

Shape letters: B samples of F frames (1 for images), R regions, U distinct region texts, H regions with
negatives, K negatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
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

    short: Tensor | None  # [n] int64, into B: samples with a short caption
    long: Tensor | None  # [n] int64, into B
    region: Tensor | None  # [N] int64, into R: regions with an area, in a frame at least
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
    if not len(batch):  # the model runs the stand-in, and the losses get no row
        nothing = LossRows(None, None, None, None, None)
        return replace(facts_of(batch.stand_in(), 0), rows=nothing, counts=(0,) * len(KINDS), real_patches=0)
    regions = region_layout(batch.boxes, batch.region_image, batch.spatial_shapes)
    grids = batch.spatial_shapes[batch.region_image]
    has_area = side_tables(batch.boxes, grids, regions.longest_side, regions.most_samples)[2]
    rows, counts = loss_rows(batch, has_area.view(-1, batch.num_frames).any(dim=1))
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


def joined_facts(batches: Sequence[Batch]) -> HostFacts | None:
    """Those of several batches as one, as far as losses read them; None where a batch has none.

    The layouts, which only the model reads, are the first batch's.
    """
    found = [batch.facts for batch in batches if batch.facts is not None]
    if len(found) < len(batches):
        return None
    lengths = {  # what the row numbers of each kind count
        "short": [len(batch.short_valid) for batch in batches],
        "long": [len(batch.long_valid) for batch in batches],
        "region": [len(batch.phrase_index) for batch in batches],
        "hard": [len(batch.hard_region) for batch in batches],
        "altered": [
            facts.counts[KINDS.index("hard")] * (batch.hard_index.shape[1] - 1)
            for batch, facts in zip(batches, found, strict=True)
        ],
    }
    rows = {
        entry.name: _joined_rows([getattr(facts.rows, entry.name) for facts in found], lengths[entry.name])
        for entry in fields(LossRows)
    }
    return replace(
        found[0],
        rows=LossRows(**rows),
        counts=tuple(map(sum, zip(*(facts.counts for facts in found), strict=True))),
        real_patches=sum(facts.real_patches for facts in found),
        num_region_texts=sum(facts.num_region_texts for facts in found),
    )


def _joined_rows(parts: Sequence[Tensor | None], lengths: Sequence[int]) -> Tensor | None:
    """Numbers into the rows of all parts together."""
    if all(part is None for part in parts):
        return None
    device = next(part.device for part in parts if part is not None)
    first, found = 0, []
    for part, length in zip(parts, lengths, strict=True):
        found.append(first + (torch.arange(length, device=device) if part is None else part))
        first += length
    return torch.cat(found)


def bucketed(number: int) -> int:
    """``number`` rounded up to one of ``BUCKETS_PER_OCTAVE`` sizes between two powers of two."""
    step = max(1, (1 << max(number - 1, 0).bit_length()) // (2 * BUCKETS_PER_OCTAVE))
    return -(-number // step) * step


def pad_rows(rows: Tensor, number: int) -> Tensor:
    """Rows of 0 up to ``number``."""
    return torch.nn.functional.pad(rows, (0, 0) * (rows.ndim - 1) + (0, number - len(rows)))
