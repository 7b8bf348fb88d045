"""Cutting a video into clips: which frames are taken, by their times, and the record that a clip becomes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from data_tools.execution.shards import Drop
from data_tools.shards import Record
from data_tools.sources.boxes import BoxProblem, usable_box
from data_tools.sources.tracks import Problems, Track
from pipeline.data.schema import Box, SampleError, parse_sample
from pipeline.data.video import VideoFrame

JPEG_QUALITY = 90
TOLERANCE_SECONDS = 1e-4  # of times that a container rounds


@dataclass(frozen=True)
class Cutting:
    """``rate``: frames a second that are taken; ``num_frames``: of a clip, the longest; ``least_frames`` the shortest.

    ``short_side``: frames are made smaller to it, in pixels; None: they stay as they are.
    """

    rate: float = 2.0
    num_frames: int = 8
    least_frames: int = 2
    short_side: int | None = None

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: a number that no clip can have.
        """
        if not 0 < self.rate <= 1000:
            raise ValueError(f"--rate is {self.rate:g}; it must be above 0 and at most 1000 frames a second")
        if not 2 <= self.least_frames <= self.num_frames <= 512:
            raise ValueError(
                f"--frames is {self.num_frames} and --least-frames {self.least_frames}; they must be from 2 to 512, "
                "the second not above the first"
            )
        if self.short_side is not None and self.short_side < 16:
            raise ValueError(f"--short-side is {self.short_side}; it must be at least 16 pixels")

    @property
    def clip_seconds(self) -> float:
        return self.num_frames / self.rate


@dataclass(frozen=True)
class Row:
    """What the table says of a video, or of a part of it: ``fields`` are the record's texts, language and source."""

    key: str
    fields: dict[str, Any]
    start: float = 0.0
    end: float | None = None


@dataclass
class _Part:
    """The clip that is being filled."""

    number: int
    begin: float
    numbers: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)
    size: tuple[int, int] | None = None
    fault: tuple[str, str] | None = None


class RowCutter:
    """Fills the clips of one row with a video's frames, as they come."""

    def __init__(self, row: Row, cutting: Cutting, tracks: Sequence[Track], problems: Problems, video: str) -> None:
        self.row, self.cutting, self.tracks, self.problems, self.video = row, cutting, tracks, problems, video
        self._taken = 0  # places of the grid of times that are behind
        self._part: _Part | None = None
        self.is_done = False

    def take(self, frame: VideoFrame) -> Iterator[Record | Drop]:
        """Use the frame if its time has come; what it completes.

        The grid has a place every 1 / rate seconds from the row's start; the first frame at or after a place is taken.
        """
        row, cutting = self.row, self.cutting
        if self.is_done:
            return
        if row.end is not None and frame.seconds >= row.end - TOLERANCE_SECONDS:
            yield from self.finish()
            return
        passed = int((frame.seconds - row.start + TOLERANCE_SECONDS) * cutting.rate) + 1
        if frame.seconds < row.start - TOLERANCE_SECONDS or passed <= self._taken:
            return
        number = (passed - 1) // cutting.num_frames
        if self._part is not None and self._part.number != number:
            yield self._closed(self._part)
            self._part = None
        if self._part is None:
            self._part = _Part(number, row.start + number * cutting.clip_seconds)
        self._taken = passed
        self._add(self._part, frame)

    def _add(self, part: _Part, frame: VideoFrame) -> None:
        image = frame.image()
        if part.size is None:
            part.size = image.size
        elif part.size != image.size:
            part.fault = "unequal_frames", f"frame {frame.number} has {image.size} pixels, the first {part.size}"
        if part.fault is None:
            part.numbers.append(frame.number)
            part.times.append(max(0.0, frame.seconds - part.begin))
            part.frames.append(_jpeg(image, self.cutting.short_side))

    def finish(self, fault: tuple[str, str] | None = None) -> Iterator[Record | Drop]:
        """The clip in hand; ``fault``: kind and words of why no more frames come, and it cannot be used."""
        if self.is_done:
            return
        self.is_done = True
        part, self._part = self._part, None
        if part is not None and fault is not None and len(part.frames) == self.cutting.num_frames:
            yield self._closed(part)  # it was whole before the damage
            part = _Part(part.number + 1, part.begin + self.cutting.clip_seconds)
        part = part or _Part(0, self.row.start)
        part.fault = fault or part.fault
        yield self._closed(part)

    def _closed(self, part: _Part) -> Record | Drop:
        key = self.row.key if part.number == 0 and not self._is_cut else f"{self.row.key}-{part.number:03d}"
        if part.fault is None and len(part.frames) < self.cutting.least_frames:
            told = f"{self.video} from {part.begin:g} s on gives {len(part.frames)} frames"
            rule = f"at least {self.cutting.least_frames} are asked for (--least-frames, --rate)"
            part.fault = "no_frames" if not part.frames else "too_short", f"{told}; {rule}"
        if part.fault is not None:
            return Drop(key, *part.fault)
        return self._record(key, part)

    @property
    def _is_cut(self) -> bool:
        """Whether the row gives several clips, so that their keys need numbers."""
        return self.row.end is None or (self.row.end - self.row.start) > self.cutting.clip_seconds + TOLERANCE_SECONDS

    def _record(self, key: str, part: _Part) -> Record | Drop:
        assert part.size is not None  # it has frames
        with Image.open(io.BytesIO(part.frames[0])) as first:
            width, height = first.size
        source = {
            **self.row.fields.get("source", {}),
            "video": self.video,
            "seconds": [round(part.begin + part.times[0], 3), round(part.begin + part.times[-1], 3)],
            "frame_numbers": part.numbers,
        }
        document = {
            **self.row.fields,
            "width": width,
            "height": height,
            "frames": [round(seconds, 6) for seconds in part.times],
            "regions": self._regions(part, *part.size),
            "source": source,
        }
        try:
            sample = parse_sample(document, key=key, shard=self.video)
        except SampleError as error:
            return Drop(key, error.kind, str(error))
        return Record(key, b"", "jpg", sample, frames=tuple(part.frames))

    def _regions(self, part: _Part, width: int, height: int) -> list[dict[str, Any]]:
        regions = []
        for track in self.tracks:
            phrase = track.phrase or track.category
            if phrase is None or not phrase.strip():
                self.problems.add(
                    "track_without_phrase", f"track {track.number} of {self.video} has no phrase or class"
                )
                continue
            boxes = [self._box(track, number, width, height) for number in part.numbers]
            if any(box is not None for box in boxes):
                extra = {"long_phrase": track.long_phrase, "category": track.category, "negatives": track.negatives}
                given = {name: value for name, value in extra.items() if value}
                regions.append({"boxes": boxes, "phrase": phrase, **given})
        return regions

    def _box(self, track: Track, number: int, width: int, height: int) -> Box | None:
        found = track.boxes.get(number)
        if found is None:
            return None
        left, top, wide, high = found
        try:
            return usable_box([left / width, top / height, (left + wide) / width, (top + high) / height])
        except BoxProblem as problem:
            self.problems.add(problem.kind, f"track {track.number} of {self.video}, frame {number}: {found}; {problem}")
            return None


def _jpeg(image: Image.Image, short_side: int | None) -> bytes:
    if short_side is not None and min(image.size) > short_side:
        scale = short_side / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()
