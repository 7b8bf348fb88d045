"""Samples to one rank's batch.

Shape letters: B samples of F frames (1 for images), P patches, T tokens, R regions, U distinct
region texts, H regions with negatives, K negatives.
What is drawn at random (which regions, long or short phrase, which negatives) is a pure function of seed, epoch and
key, so an interrupted run draws the same after a resume, on any number of ranks and workers.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.config import DataSettings
from pipeline.data.augment import View, seen_pixels
from pipeline.data.batch import Batch
from pipeline.data.facts import bucketed, facts_of, pad_rows
from pipeline.data.images import decode_array
from pipeline.data.patches import write_patches
from pipeline.data.resolution import PATCH_SIZE, grid_of
from pipeline.data.schema import Sample
from pipeline.data.tokenizer import Tokenizer

T = TypeVar("T")
# Of a region in a frame where it is not there: without area, so region pooling leaves it out.
NO_BOX = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class ChosenRegion:
    """A region as one epoch reads it: its text, and the texts that are told from the true short phrase."""

    boxes: tuple[tuple[float, float, float, float] | None, ...]  # one, or one a frame; None where it is not there
    text: str
    phrase: str
    negatives: tuple[str, ...]


def choose_regions(sample: Sample, key: str, seed: int, epoch: int, settings: DataSettings) -> list[ChosenRegion]:
    """At most ``max_regions_per_image`` regions of a sample, in their stored order."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{key}".encode(), digest_size=8).digest()
    draws = random.Random(int.from_bytes(digest, "big"))
    chosen = []
    for region in _some(sample.regions, settings.max_regions_per_image, draws):
        long = draws.random() < settings.long_phrase_probability
        negatives = _some(region.negatives, settings.max_negatives, draws)
        text = region.long_phrase if long and region.long_phrase is not None else region.phrase
        boxes = (region.box,) if region.boxes is None else region.boxes
        chosen.append(ChosenRegion(boxes, text, region.phrase, tuple(negatives)))
    return chosen


def _some(items: Sequence[T], count: int, draws: random.Random) -> Sequence[T]:
    if len(items) <= count:
        return items
    # random() alone is promised to give the same numbers in every Python release; sample() and shuffle() are not.
    order = sorted(range(len(items)), key=[draws.random() for _ in items].__getitem__)
    return [items[i] for i in sorted(order[:count])]


def text_hash(text: str) -> int:
    """64 bits of a text as the model reads it (lower-cased), as a signed number."""
    return int.from_bytes(hashlib.blake2b(text.lower().encode(), digest_size=8).digest(), "big", signed=True)


class PixelBuffer:
    """The image tensors of a batch, filled slot by slot."""

    def __init__(self, values: Tensor, settings: DataSettings) -> None:
        """``values`` is [B F, P, 768] uint8 memory of any content."""
        size, self.patch_budget, _ = values.shape
        self.values, self.settings = values, settings
        self.mask = torch.zeros(size, self.patch_budget, dtype=torch.int32)
        self.shapes = torch.zeros(size, 2, dtype=torch.int64)

    def put(self, slot: int, image: bytes, width: int, height: int, view: View | None = None) -> None:
        """Decode an image of ``width`` x ``height`` pixels, or a view of it, into ``slot``. Raises ``ImageFault``.

        A slot holds one image, or one frame of a clip.
        """
        seen = view.size(width, height) if view else (width, height)
        rows, columns = grid_of(*seen, self.patch_budget, self.settings.keep_aspect_ratio)
        # A crop is counted in pixels of the stored image, so that one is decoded at its full size.
        target = None if view and view.crop else (columns * PATCH_SIZE, rows * PATCH_SIZE)
        array = decode_array(image, self.settings.max_image_megapixels, target)
        if view is not None:
            array = seen_pixels(array, view)
        write_patches(array, (rows, columns), self.values[slot])
        self.values[slot, rows * columns :] = 0
        self.mask[slot, : rows * columns] = 1
        self.mask[slot, rows * columns :] = 0
        self.shapes[slot] = torch.tensor((rows, columns))


class Collator:
    """Makes a ``Batch`` of decoded images and their records."""

    def __init__(
        self,
        settings: DataSettings,
        tokenizer: Tokenizer,
        text_lengths: tuple[int, int],
        seed: int,
        with_regions: bool,
    ) -> None:
        self.settings, self.tokenizer, self.seed, self.with_regions = settings, tokenizer, seed, with_regions
        self.short_length, self.long_length = text_lengths

    def __call__(
        self,
        pixels: PixelBuffer,
        keys: list[str],
        samples: list[Sample],
        epoch: int,
        language: str,
        replaced: dict[str, int],
        frames: int = 1,
    ) -> Batch:
        """The batch of some images, or clips of so many frames, which may be none, and their records."""
        prefixes: Mapping[Any, str] = self.settings.short_caption_prefix
        prefix = prefixes.get(language, "")
        short = [prefix + sample.short_caption if sample.short_caption else "" for sample in samples]
        long = [sample.long_caption or "" for sample in samples]
        regions = self._regions(keys, samples, epoch)
        texts: dict[str, int] = {}
        fields = self._region_fields(regions, texts, frames)
        # One tokenizer call a length: captions and region texts of the whole batch together.
        short_ids = self.tokenizer(short + list(texts), self.short_length)
        num_rows = bucketed(len(texts))
        hashes = torch.tensor([text_hash(text) for text in texts], dtype=torch.int64)
        batch = Batch(
            keys=keys,
            language=language,
            pixel_values=pixels.values,
            pixel_attention_mask=pixels.mask,
            spatial_shapes=pixels.shapes,
            short_ids=short_ids[: len(short)].clone(),
            short_valid=torch.tensor([sample.short_caption is not None for sample in samples], dtype=torch.bool),
            long_ids=self.tokenizer(long, self.long_length),
            long_valid=torch.tensor([sample.long_caption is not None for sample in samples], dtype=torch.bool),
            region_ids=pad_rows(short_ids[len(short) :], num_rows),
            region_text_hash=pad_rows(hashes, num_rows),
            replaced=replaced,
            num_frames=frames,
            **fields,
        )
        return replace(batch, facts=facts_of(batch, len(texts)))

    def _regions(self, keys: list[str], samples: list[Sample], epoch: int) -> list[tuple[int, ChosenRegion]]:
        if not self.with_regions:
            return []
        pairs = zip(keys, samples, strict=True)
        return [
            (image, region)
            for image, (key, sample) in enumerate(pairs)
            for region in choose_regions(sample, key, self.seed, epoch, self.settings)
        ]

    def _region_fields(
        self, regions: list[tuple[int, ChosenRegion]], texts: dict[str, int], frames: int
    ) -> dict[str, Tensor]:
        """The batch's flat region tensors; fills ``texts`` with the distinct lower-cased texts and their numbers."""

        def number(text: str) -> int:
            return texts.setdefault(text.lower(), len(texts))

        hard_rows = [row for row, (_, region) in enumerate(regions) if region.negatives]
        phrase_index = [number(region.text) for _, region in regions]
        width = 1 + self.settings.max_negatives
        hard_index = np.zeros((len(hard_rows), width), dtype=np.int64)
        hard_mask = np.zeros((len(hard_rows), width), dtype=bool)
        for place, row in enumerate(hard_rows):
            region = regions[row][1]
            numbers = [number(text) for text in (region.phrase, *region.negatives)]
            hard_index[place, : len(numbers)] = numbers
            hard_mask[place, : len(numbers)] = True
        boxes = [box or NO_BOX for _, region in regions for box in region.boxes]
        images = [sample * frames + frame for sample, _ in regions for frame in range(frames)]
        return {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "region_image": torch.tensor(images, dtype=torch.int64),
            "phrase_index": torch.tensor(phrase_index, dtype=torch.int64),
            "hard_region": torch.tensor(hard_rows, dtype=torch.int64),
            "hard_index": torch.from_numpy(hard_index),
            "hard_mask": torch.from_numpy(hard_mask),
        }
