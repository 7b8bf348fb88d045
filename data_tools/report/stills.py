"""A clip as one of its frames, for what counts and draws images."""

from __future__ import annotations

from dataclasses import replace

from pipeline.data.records import TarSample
from pipeline.data.schema import Sample
from pipeline.data.tar import Member


def middle_frame(found: TarSample, sample: Sample) -> tuple[Member, str, Sample]:
    """The picture of a sample, its extension, and its record with the boxes of that picture.

    Of an image its own; of a clip the middle frame, with the regions that are there.
    """
    if sample.frames is None:
        return found.image, found.image_extension or "", sample
    members = found.frame_members()
    member, number = members[len(members) // 2], len(members) // 2
    extension = next(name for name, one in found.members.items() if one is member)
    return member, extension.rpartition(".")[2], at_frame(sample, number)


def at_frame(sample: Sample, number: int | None) -> Sample:
    """The record of one frame of a clip; None: of each region the middle one of the frames where it is there."""
    regions = []
    for region in sample.regions:
        boxes = region.boxes or ()
        there = [box for box in boxes if box is not None]
        box = boxes[number] if number is not None else there[len(there) // 2] if there else None
        if box is not None:
            regions.append(replace(region, box=box, boxes=None))
    return replace(sample, frames=None, anomaly=None, regions=tuple(regions))
