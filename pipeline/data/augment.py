"""Light augmentation that keeps what is said of an image true: crops, mirrored images, other colours.

All frames of a clip are seen through the same view, so that what moves in it moves as it did.

A crop keeps every box of the record whole; its boxes are counted in the crop. An image is mirrored only where none of
its texts names a side or writing, and recoloured only where none names a colour. What is drawn is a pure function of
seed, epoch and key, as everything else that is drawn of a sample, so a resumed run draws the same.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from pipeline.config.augmentation import AugmentSettings
from pipeline.data.schema import Region, Sample
from pipeline.data.side_words import names_any

Box = tuple[float, float, float, float]
GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # luma of ITU-R BT.601, as JPEG's own


@dataclass(frozen=True)
class View:
    """What one epoch sees of an image, or of every frame of a clip."""

    crop: tuple[int, int, int, int] | None = None  # x1, y1, x2, y2 in pixels of the stored image; None: all of it
    flipped: bool = False
    colour: tuple[float, float, float] | None = None  # factors of brightness, contrast and saturation

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in pixels of what is seen of an image."""
        return (self.crop[2] - self.crop[0], self.crop[3] - self.crop[1]) if self.crop else (width, height)


def choose_view(sample: Sample, key: str, seed: int, epoch: int, settings: AugmentSettings) -> View:
    """The view of a sample in an epoch."""
    digest = hashlib.blake2b(f"view/{seed}/{epoch}/{key}".encode(), digest_size=8).digest()
    draws = random.Random(int.from_bytes(digest, "big"))
    # Every number is drawn whether or not it is used, so that one setting does not change what another draws.
    crops, flips, recolours = (draws.random() for _ in range(3))
    area, across, down = (draws.random() for _ in range(3))
    factors = tuple(1 + settings.colour_strength * (2 * draws.random() - 1) for _ in range(3))
    crop = None
    if crops < settings.crop_share:
        crop = _crop(sample, settings.crop_least_area + (1 - settings.crop_least_area) * area, across, down)
    flipped = flips < settings.flip_share and not names_any("side", _texts(sample), sample.language)
    recoloured = recolours < settings.colour_share and not names_any("colour", _texts(sample), sample.language)
    return View(crop, flipped, (factors[0], factors[1], factors[2]) if recoloured else None)


def _crop(sample: Sample, area: float, across: float, down: float) -> tuple[int, int, int, int]:
    """A rectangle of about ``area`` of the image and of its shape that holds every box; ``across``, ``down``: where."""
    boxes = [box for region in sample.regions for box in _boxes(region)]
    sides = []
    for size, low, high, place in ((sample.width, 0, 2, across), (sample.height, 1, 3, down)):
        first = min((math.floor(box[low] * size) for box in boxes), default=size)
        last = max((math.ceil(box[high] * size) for box in boxes), default=0)
        length = max(1, round(size * math.sqrt(area)), last - first)
        earliest, latest = max(0, last - length), min(first, size - length)
        start = earliest + int(place * (latest - earliest + 1))
        sides.append((start, start + length))
    (x1, x2), (y1, y2) = sides
    return x1, y1, x2, y2


def _boxes(region: Region) -> Iterator[Box]:
    """Wherever a region is, in any frame."""
    yield from (box for box in (region.box, *(region.boxes or ())) if box is not None)


def _texts(sample: Sample) -> Iterator[str]:
    """Everything that is said of the image, true or altered."""
    yield from (text for text in (sample.short_caption, sample.long_caption) if text)
    for region in sample.regions:
        yield region.phrase
        yield from region.negatives
        if region.long_phrase:
            yield region.long_phrase


def seen_sample(sample: Sample, view: View) -> Sample:
    """The record of what the view shows: its size, and its boxes in it."""
    width, height = view.size(sample.width, sample.height)
    regions = tuple(
        replace(
            region,
            box=region.box and _seen_box(region.box, sample, view),
            boxes=region.boxes and tuple(box and _seen_box(box, sample, view) for box in region.boxes),
        )
        for region in sample.regions
    )
    return replace(sample, width=width, height=height, regions=regions)


def _seen_box(box: Box, sample: Sample, view: View) -> Box:
    x1, y1, x2, y2 = box
    if view.crop is not None:
        left, top, right, bottom = view.crop
        x1, x2 = ((x * sample.width - left) / (right - left) for x in (x1, x2))
        y1, y2 = ((y * sample.height - top) / (bottom - top) for y in (y1, y2))
        x1, y1, x2, y2 = (min(max(value, 0.0), 1.0) for value in (x1, y1, x2, y2))  # beyond by a rounding error
    return (1 - x2, y1, 1 - x1, y2) if view.flipped else (x1, y1, x2, y2)


def seen_pixels(array: np.ndarray, view: View) -> np.ndarray:
    """The view of an image [height, width, 3] uint8 that was decoded at its full size if the view crops it."""
    if view.crop is not None:
        left, top, right, bottom = view.crop
        array = array[top:bottom, left:right]
    if view.flipped:
        array = array[:, ::-1]
    if view.colour is not None:
        array = _recoloured(array, *view.colour)
    return np.ascontiguousarray(array)


def _recoloured(array: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    values = array.astype(np.float32) * brightness
    values = (values - (values @ GREY).mean()) * contrast + (values @ GREY).mean()
    grey = (values @ GREY)[..., None]
    return np.clip(np.rint(grey + (values - grey) * saturation), 0, 255).astype(np.uint8)
