"""What the readers hand over: where each image lies, and the rows that speak of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.evaluation.results import Accounting


@dataclass(frozen=True)
class ImageItem:
    """An image on disk: a whole file, or ``length`` bytes at ``offset`` of a tar."""

    key: str
    path: Path
    offset: int = 0
    length: int | None = None

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read() if self.length is None else file.read(self.length)

    @property
    def identity(self) -> str:
        """Names the bytes without reading them: for the keys of the feature cache."""
        status = self.path.stat()
        return f"{self.key}|{self.path.name}|{self.offset}|{self.length}|{status.st_size}|{status.st_mtime_ns}"


@dataclass(frozen=True)
class Caption:
    """One text of one image (``image`` counts into the set's images)."""

    image: int
    text: str


@dataclass
class CaptionSet:
    """Images with captions, for retrieval."""

    images: list[ImageItem]
    captions: list[Caption]
    accounting: Accounting


@dataclass(frozen=True)
class RegionRow:
    """A box of an image. ``texts``: the true phrase, then the wrong ones; or ``label``: the number of its class.

    ``box`` is normalised xyxy within 0..1. ``tags`` group the scores (language, combination, …).
    """

    image: int
    box: tuple[float, float, float, float]
    texts: tuple[str, ...] = ()
    label: int = -1
    tags: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ClipItem:
    """A clip on disk: its frames in order. ``times`` in seconds, ``labels`` 0 or 1 a frame where the set has them."""

    key: str
    frames: tuple[ImageItem, ...]
    times: tuple[float, ...] = ()
    labels: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ClipRow(RegionRow):
    """A region of a clip: ``image`` counts into the clips, ``boxes`` are one a frame, None where it is not there.

    ``frames``: the numbers of the frames that the row is about; None: as many as the clip is sampled to.
    """

    boxes: tuple[tuple[float, float, float, float] | None, ...] = ()
    frames: tuple[int, ...] | None = None


def clip_row(
    clip: int,
    boxes: Sequence[tuple[float, float, float, float] | None],
    texts: tuple[str, ...] = (),
    frames: tuple[int, ...] | None = None,
    tags: dict[str, Any] | None = None,
) -> ClipRow:
    """A row of a region that is there in some frame; its ``box`` is that of the first one."""
    first = next(box for box in boxes if box is not None)
    return ClipRow(clip, first, texts, tags=tags or {}, boxes=tuple(boxes), frames=frames)


@dataclass
class RegionSet:
    """Images with boxes. ``classes``: the names that ``label`` counts into, where the set has labels."""

    images: list[ImageItem]
    rows: list[RegionRow]
    accounting: Accounting
    classes: list[str] = field(default_factory=list)


def normalise_box(
    box: Sequence[float], width: float, height: float
) -> tuple[tuple[float, float, float, float] | None, bool]:
    """A pixel box (x, y, width, height) as normalised xyxy, clipped to the image: ``(box or None, was it clipped)``.

    None: nothing of the box lies inside the image, or it has no area.
    """
    x, y, wide, high = (float(value) for value in box)
    raw = (x / width, y / height, (x + wide) / width, (y + high) / height)
    if not all(math.isfinite(value) for value in raw):
        return None, False
    x1, y1, x2, y2 = (min(max(value, 0.0), 1.0) for value in raw)
    inside = (x1, y1, x2, y2)
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        return None, False
    # COCO boxes end up to a rounding error beyond the edge: that is no clipping worth a note
    return inside, max(abs(a - b) for a, b in zip(raw, inside, strict=True)) > 1e-3
