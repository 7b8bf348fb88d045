"""Which frames of a clip are read: evenly over it, as many as the plan has for all clips of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.data.schema import Sample


def frame_numbers(count: int, wanted: int) -> list[int]:
    """``wanted`` of ``count`` frames: the middle one of each of as many equal parts of the clip.

    Raises:
        ValueError: more are wanted than there are.
    """
    if not 1 <= wanted <= count:
        raise ValueError(f"{wanted} frames of a clip of {count} are asked for; ask for 1 to {count}")
    return [(2 * number + 1) * count // (2 * wanted) for number in range(wanted)]


def sampled(sample: Sample, numbers: Sequence[int]) -> Sample:
    """The record of some frames of a clip, in their order."""
    if sample.frames is None:
        raise ValueError("frames of an image are asked for; it has none")
    regions = tuple(
        replace(region, boxes=tuple(region.boxes[number] for number in numbers))
        for region in sample.regions
        if region.boxes is not None
    )
    return replace(
        sample,
        frames=tuple(sample.frames[number] for number in numbers),
        regions=regions,
        anomaly=None if sample.anomaly is None else tuple(sample.anomaly[number] for number in numbers),
    )
