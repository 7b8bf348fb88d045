"""Features of clips: every frame encoded once as an image, then aggregated over the frames by the model.

Letters: C clips or snippets, F frames, R regions, D width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.data.clips import frame_numbers
from pipeline.evaluation.features import EncodeSettings, SetFeatures, encode_set
from pipeline.evaluation.formats.items import ClipItem, ClipRow, ImageItem, RegionRow
from pipeline.evaluation.models.base import EvaluationModel
from pipeline.evaluation.ranks import Ranks
from pipeline.evaluation.results import EvaluationError

TOGETHER = 1024  # clips or regions that are aggregated at one time


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of a clip are looked at. ``most``: sampled evenly down to so many. ``single``: the middle one alone,
    of a region the middle one of those where it is there."""

    most: int | None = None
    single: bool = False

    def numbers(self, count: int) -> tuple[int, ...]:
        """The frames of a clip of ``count``."""
        if self.single:
            return (count // 2,)
        return tuple(frame_numbers(count, min(count, self.most or count)))

    def of_row(self, row: ClipRow, numbers: tuple[int, ...]) -> tuple[int, ...]:
        """The frames of a region in a clip that is sampled to ``numbers``."""
        if row.frames is not None:
            numbers = row.frames
        if self.single:
            there = [number for number in row.frames or range(len(row.boxes)) if row.boxes[number] is not None]
            return (there[len(there) // 2],) if there else numbers[:1]
        return numbers


@dataclass(frozen=True)
class Snippet:
    """Some frames of a clip, that one vector is made of."""

    clip: int
    frames: tuple[int, ...]


def frame_choice(model: EvaluationModel, asked: int | None, single: bool) -> FrameChoice:
    """The choice that the options ask for.

    Raises:
        EvaluationError: more frames than the model's temporal transformer takes.
    """
    if asked is not None and model.most_frames is not None and asked > model.most_frames:
        raise EvaluationError(
            f"frames is {asked}; the temporal transformer of {model.name} was trained with {model.most_frames}: give "
            f"{model.most_frames} or fewer"
        )
    return FrameChoice(asked or model.most_frames, single)


def encode_clips(
    model: EvaluationModel,
    clips: Sequence[ClipItem],
    rows: Sequence[ClipRow] = (),
    *,
    choice: FrameChoice,
    settings: EncodeSettings,
    ranks: Ranks,
    label: str = "frames of clips",
) -> SetFeatures:
    """A vector a clip and one a row. ``faults``: clip -> what is wrong with a frame of it.

    Raises:
        EvaluationError: a feature is not finite.
    """
    whole = [Snippet(number, choice.numbers(len(clip.frames))) for number, clip in enumerate(clips)]
    return encode_snippets(model, clips, whole, rows, choice=choice, settings=settings, ranks=ranks, label=label)


def encode_snippets(
    model: EvaluationModel,
    clips: Sequence[ClipItem],
    snippets: Sequence[Snippet],
    rows: Sequence[ClipRow] = (),
    *,
    choice: FrameChoice,
    settings: EncodeSettings,
    ranks: Ranks,
    label: str = "frames of clips",
) -> SetFeatures:
    """As :func:`encode_clips`, ``embeds`` being one vector a snippet."""
    images: list[ImageItem] = []
    owners: list[int] = []
    place: dict[tuple[int, int], int] = {}  # (clip, frame) -> image

    def image_of(clip: int, frame: int) -> int:
        if (clip, frame) not in place:
            place[clip, frame] = len(images)
            images.append(clips[clip].frames[frame])
            owners.append(clip)
        return place[clip, frame]

    frames_of = [tuple(image_of(one.clip, frame) for frame in one.frames) for one in snippets]
    sampled = [choice.numbers(len(clip.frames)) for clip in clips]
    boxed: list[RegionRow] = []  # a box of a frame each
    boxes_of: list[list[int | None]] = []  # of each row, by its frames: which of ``boxed``
    for row in rows:
        own: list[int | None] = []
        for frame in choice.of_row(row, sampled[row.image]):
            box = row.boxes[frame]
            own.append(None if box is None else len(boxed))
            if box is not None:
                boxed.append(RegionRow(image_of(row.image, frame), box))
        boxes_of.append(own)
    features = encode_set(model, images, boxed, settings=settings, ranks=ranks, label=label)
    width = features.embeds.shape[1]
    embeds, regions = torch.zeros(len(snippets), width), torch.zeros(len(rows), features.regions.shape[1])
    valid = torch.zeros(len(rows), dtype=torch.bool)
    for numbers, index in _by_length(frames_of, lambda frames: torch.tensor(frames)):
        embeds[numbers] = model.aggregate_frames(features.embeds[index])
    places = torch.tensor([one.box for one in boxed]).view(-1, 4)
    for numbers, index in _by_length(boxes_of, lambda own: torch.tensor([-1 if at is None else at for at in own])):
        there = (index >= 0) & features.region_valid[index.clamp(min=0)] if boxed else index >= 0
        if boxed:
            per_frame = features.regions[index.clamp(min=0)] * there.unsqueeze(-1)
            boxes = places[index.clamp(min=0)]
            regions[numbers], valid[numbers] = model.aggregate_regions(per_frame, there, boxes)
    faults = {owners[image]: what for image, what in features.faults.items()}
    return SetFeatures(embeds, regions, valid, faults)


def _by_length(
    lists: Sequence[Sequence[int | None]], tensor_of: Callable[[Sequence[int | None]], Tensor]
) -> list[tuple[list[int], Tensor]]:
    """``(numbers [N], tensor [N, F])`` of lists of one length, some at a time."""
    groups: dict[int, list[int]] = defaultdict(list)
    for number, one in enumerate(lists):
        groups[len(one)].append(number)
    parts = []
    for members in groups.values():
        for start in range(0, len(members), TOGETHER):
            some = members[start : start + TOGETHER]
            parts.append((some, torch.stack([tensor_of(lists[number]) for number in some])))
    return parts
