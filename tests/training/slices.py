"""Micro-batches for a small model, cut from a list of images in any way, with the texts and regions they need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.data.batch import Batch
from pipeline.data.facts import facts_of
from pipeline.data.slices import Division
from tests.model.material import LONG, SHORT, VOCABULARY
from tests.objectives.toy import MAX_NEGATIVES, ToyImage, make_batch

GRIDS = ((4, 5), (2, 7), (3, 3), (5, 4))
PATCHES = 20


def micro_batches(images: Sequence[ToyImage], division: Division, rank: int, frames: int = 1) -> list[Batch]:
    """This rank's micro-batches of a global batch of images, or of clips of so many frames."""
    parts = division.parts(len(images), PATCHES, frames)
    cuts = [images[division.part(len(images), rank, part, parts)] for part in range(parts)]
    return [batch_of(cut) if frames == 1 else clips_of(cut, frames) for cut in cuts]


def batch_of(images: Sequence[ToyImage]) -> Batch:
    """What the collator would make of these images: each distinct phrase once, K the same in every batch."""
    toy = make_batch(list(images))
    absent = 1 + MAX_NEGATIVES - toy.hard_index.shape[1]
    grids = torch.tensor([GRIDS[int(image.feature[0].abs() * 1000) % len(GRIDS)] for image in images]).reshape(-1, 2)
    corners = torch.stack([_draw(r.feature, 2, torch.rand) * 0.5 for image in images for r in image.regions] or [_NONE])
    boxes = torch.cat([corners, corners + 0.4], dim=1)[: len(toy.region_image)]
    valid = torch.tensor([r.valid for image in images for r in image.regions], dtype=torch.bool)
    boxes[~valid, 2] = boxes[~valid, 0]  # without area
    batch = replace(
        toy,
        pixel_values=_stack([_draw(image.feature, (PATCHES, 768), torch.rand) for image in images], (PATCHES, 768)),
        pixel_attention_mask=(torch.arange(PATCHES) < grids.prod(1, keepdim=True)).int(),
        spatial_shapes=grids.long(),
        short_ids=_stack([_ids(image.short, SHORT) for image in images], (SHORT,)).long(),
        long_ids=_stack([_ids(image.long, LONG) for image in images], (LONG,)).long(),
        boxes=boxes,
        region_ids=_stack([_ids(phrase[None] + 1.0, SHORT) for phrase in toy.region_ids[:, 0]], (SHORT,)).long(),
        hard_index=torch.nn.functional.pad(toy.hard_index, (0, absent)),
        hard_mask=torch.nn.functional.pad(toy.hard_mask, (0, absent)),
    )
    return replace(batch, facts=facts_of(batch))


def clips_of(images: Sequence[ToyImage], frames: int) -> Batch:
    """The same texts and regions over frames that differ; a region is not in every frame, nor one without area."""
    batch = batch_of(images)
    pixels = batch.pixel_values
    shift = torch.arange(frames)[None, :, None, None] * 0.1
    regions = [region for image in images for region in image.regions]
    absent = [[bool(_draw(r.feature + f, 1, torch.rand) < 0.4) for f in range(frames)] for r in regions]
    boxes = batch.boxes[:, None] + 0.03 * torch.arange(frames)[None, :, None]
    boxes[torch.tensor(absent, dtype=torch.bool).reshape(-1, frames)] = 0
    boxes[[number for number, region in enumerate(regions) if not region.valid]] = 0
    made = replace(
        batch,
        pixel_values=(pixels[:, None] * (1 - shift)).flatten(0, 1),
        pixel_attention_mask=batch.pixel_attention_mask.repeat_interleave(frames, 0),
        spatial_shapes=batch.spatial_shapes.repeat_interleave(frames, 0),
        boxes=boxes.flatten(0, 1),
        region_image=(batch.region_image[:, None] * frames + torch.arange(frames)).flatten(),
        num_frames=frames,
    )
    return replace(made, facts=facts_of(made))


_NONE = torch.zeros(2)


def _draw(of: Tensor, shape: int | tuple[int, ...], kind: Callable[..., Tensor]) -> Tensor:
    """The same numbers for the same image, wherever it lies."""
    generator = torch.Generator().manual_seed(int(of.double().abs().sum() * 1e9) % 2**60)
    return kind(shape, generator=generator)


def _ids(of: Tensor | None, length: int) -> Tensor:
    if of is None:
        return torch.zeros(length)
    return (_draw(of, (length,), torch.rand) * VOCABULARY).floor()


def _stack(rows: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    return torch.stack(rows) if rows else torch.zeros(0, *shape)
