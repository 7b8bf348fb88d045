"""Boxes of objects through the frames of videos: MOT's text files, COCO-VID's JSON, and the phrases of the tracks.

MOT: a line a box, ``frame, track, left, top, width, height, confidence, class, visibility``, frames from 1; a file a
video, ``TRACKS/NAME.txt`` or ``TRACKS/NAME/gt/gt.txt``. Boxes whose confidence is 0 are ones that MOT's ground truth
marks as not to be looked at. COCO-VID: COCO's JSON with ``videos``, and ``video_id`` and ``frame_id`` (from 0) in
``images``; ``instance_id`` or ``track_id`` in the annotations tells the track.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from pipeline.base.border import BorderError, quoted, read_bounded, read_lines, shown, validated
from pipeline.data.video import CONTAINERS

PixelBox = tuple[float, float, float, float]  # left, top, width, height
MAX_JSON_BYTES = 4 << 30  # TAO's training annotations have 0.2 GB
MAX_FRAME = 10_000_000  # of a frame's number: four days at 30 a second
MOT_COLUMNS = 6  # that a line must have: frame, track, left, top, width, height
MOT_FIRST_FRAME, COCO_VID_FIRST_FRAME = 1, 0


@dataclass(frozen=True)
class Track:
    """One object of a video. ``boxes`` by the frame's number, counted from 0."""

    number: str
    boxes: Mapping[int, PixelBox]
    category: str | None = None
    phrase: str | None = None
    long_phrase: str | None = None
    negatives: tuple[str, ...] = ()


@dataclass
class Problems:
    """What of a video's input is left out: by kind how often, and the first one in words."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, detail: str, count: int = 1) -> None:
        self.counts[kind] += count
        self.first.setdefault(kind, detail)


class Tracks(Protocol):
    """The tracks of many videos; picklable."""

    def of(self, video: str, problems: Problems) -> list[Track]:
        """Those of one video, by its name below the folder of videos."""

    def only(self, videos: Iterable[str]) -> Tracks:
        """No more than what these videos need: what a shard's job carries along."""

    def files(self, video: str) -> list[Path]:
        """What they are read from."""


def video_key(name: str) -> str:
    """The name of a video without its ending, so that ``a/b.mp4``, ``./a/b`` and ``a/b.avi`` are the same video."""
    path = PurePosixPath(name.replace("\\", "/"))
    return str(path.with_suffix("") if path.suffix.lower() in CONTAINERS else path)


@dataclass(frozen=True)
class MotTracks:
    """MOT's files below ``folder``. ``classes``: the names of their class numbers."""

    folder: Path
    classes: Mapping[str, str]
    first_frame: int = MOT_FIRST_FRAME

    def files(self, video: str) -> list[Path]:
        key = video_key(video)
        places = (self.folder / f"{key}.txt", self.folder / key / "gt" / "gt.txt")
        inside = [path for path in places if ".." not in PurePosixPath(key).parts and path.is_file()]
        return inside[:1]

    def only(self, videos: Iterable[str]) -> MotTracks:
        return self

    def of(self, video: str, problems: Problems) -> list[Track]:
        boxes: dict[str, dict[int, PixelBox]] = {}
        kinds: dict[str, str] = {}
        for path in self.files(video):
            for number, line in enumerate(read_lines(path, 4096), start=1):
                if not line.strip():
                    continue
                parsed = _mot_line(line)
                if parsed is None or not 0 <= parsed[0] - self.first_frame <= MAX_FRAME:
                    rule = f"frame (from {self.first_frame} on), track, left, top, width and height must be numbers"
                    problems.add("track_line", f"{path.name} line {number}: {quoted(line)}; {rule}")
                    continue
                frame, track, box, confidence, kind = parsed
                if confidence == 0:
                    continue
                boxes.setdefault(track, {})[frame - self.first_frame] = box
                kinds.setdefault(track, kind)
        return [Track(track, found, self.classes.get(kinds[track])) for track, found in boxes.items()]


def _mot_line(line: bytes) -> tuple[int, str, PixelBox, float, str] | None:
    """Frame, track, box, confidence and class; None where the line has another form."""
    try:
        cells = [cell.strip() for cell in line.decode("ascii").split(",")]
        values = [float(cell) for cell in cells[: MOT_COLUMNS + 1]]
    except (UnicodeDecodeError, ValueError):
        return None
    if len(values) < MOT_COLUMNS or not all(math.isfinite(value) for value in values):
        return None
    if values[0] != int(values[0]) or values[1] != int(values[1]) or abs(values[1]) > MAX_FRAME:
        return None
    confidence = values[MOT_COLUMNS] if len(values) > MOT_COLUMNS else 1.0
    kind = cells[MOT_COLUMNS + 1] if len(cells) > MOT_COLUMNS + 1 else ""
    return int(values[0]), str(int(values[1])), (values[2], values[3], values[4], values[5]), confidence, kind


class _Strict(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


Id = Annotated[int | str, Field(union_mode="left_to_right")]
Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)]


class _Video(_Strict):
    id: Id
    name: str | None = None
    file_name: str | None = None


class _Image(_Strict):
    id: Id
    video_id: Id
    frame_id: Annotated[int, Field(ge=0, le=MAX_FRAME)]


class _Annotation(_Strict):
    image_id: Id
    category_id: Id | None = None
    instance_id: Id | None = None
    track_id: Id | None = None
    bbox: tuple[Number, Number, Number, Number]
    phrase: str | None = None

    @property
    def track(self) -> str | None:
        found = self.instance_id if self.instance_id is not None else self.track_id
        return None if found is None else str(found)


class _Category(_Strict):
    id: Id
    name: str


class _CocoVid(_Strict):
    videos: list[_Video]
    images: list[Any]
    annotations: list[Any]
    categories: list[_Category] = []


_FILE: TypeAdapter[_CocoVid] = TypeAdapter(_CocoVid)
_IMAGE: TypeAdapter[_Image] = TypeAdapter(_Image)
_ANNOTATION: TypeAdapter[_Annotation] = TypeAdapter(_Annotation)


@dataclass(frozen=True)
class CocoVidTracks:
    """The tracks of a COCO-VID file, by the key of their video."""

    file: Path
    by_video: Mapping[str, list[Track]]

    def files(self, video: str) -> list[Path]:
        return [self.file]

    def only(self, videos: Iterable[str]) -> CocoVidTracks:
        keys = {video_key(video) for video in videos}
        return replace(self, by_video={key: self.by_video[key] for key in keys & set(self.by_video)})

    def of(self, video: str, problems: Problems) -> list[Track]:
        return self.by_video.get(video_key(video), [])


def read_coco_vid(path: Path, faults: Problems, first_frame: int = COCO_VID_FIRST_FRAME) -> CocoVidTracks:
    """The tracks of a COCO-VID file. Entries of another form are left out and counted in ``faults``.

    Raises:
        ValueError: it is no such file.
    """
    try:
        data = read_bounded(path, MAX_JSON_BYTES)
        content: _CocoVid = validated(_FILE, data, shown(path), "give COCO-VID's JSON, with videos")
    except BorderError as error:
        raise ValueError(f"--tracks {error}") from error
    names = {video.id: video_key(video.file_name or video.name or str(video.id)) for video in content.videos}
    classes = {category.id: category.name for category in content.categories}
    frames: dict[Any, tuple[str, int]] = {}
    for number, entry in enumerate(content.images):
        image = _entry(_IMAGE, entry, f"images[{number}]", "track_image", faults)
        if image is not None and image.video_id in names and image.frame_id >= first_frame:
            frames[image.id] = (names[image.video_id], image.frame_id - first_frame)
        elif image is not None:
            faults.add("track_image", f"images[{number}]: of no video of the file, or its frame_id is {image.frame_id}")
    found: dict[str, dict[str, Track]] = {}
    for number, entry in enumerate(content.annotations):
        place = f"annotations[{number}]"
        one = _entry(_ANNOTATION, entry, place, "track_annotation", faults)
        if one is None:
            continue
        if one.track is None or one.image_id not in frames:
            faults.add("track_annotation", f"{place}: it needs instance_id or track_id, and image_id of an image")
            continue
        video, frame = frames[one.image_id]
        track = found.setdefault(video, {}).get(one.track)
        if track is None:
            category = None if one.category_id is None else classes.get(one.category_id)
            track = found[video][one.track] = Track(one.track, {}, category, one.phrase)
        assert isinstance(track.boxes, dict)  # made three lines above
        track.boxes[frame] = one.bbox
    return CocoVidTracks(path, {video: list(tracks.values()) for video, tracks in found.items()})


def _entry(adapter: TypeAdapter[Any], entry: Any, place: str, kind: str, faults: Problems) -> Any:
    try:
        return validated(adapter, entry, place)
    except BorderError as error:
        faults.add(kind, str(error))
        return None


@dataclass(frozen=True)
class PhrasedTracks:
    """Tracks with phrases of their own: ``phrases[video key][track]`` go over what the tracks bring along."""

    tracks: Tracks
    phrases: Mapping[str, Mapping[str, Mapping[str, Any]]]
    file: Path

    def files(self, video: str) -> list[Path]:
        return [*self.tracks.files(video), self.file]

    def only(self, videos: Iterable[str]) -> PhrasedTracks:
        keys = {video_key(video) for video in videos}
        return PhrasedTracks(
            self.tracks.only(keys), {key: self.phrases[key] for key in keys & set(self.phrases)}, self.file
        )

    def of(self, video: str, problems: Problems) -> list[Track]:
        told = self.phrases.get(video_key(video), {})
        found = self.tracks.of(video, problems)
        for track in sorted(set(told) - {one.number for one in found}):
            problems.add("phrase_without_track", f"track {shown(track)} of {shown(video)} has a phrase and no box")
        return [replace(one, **told.get(one.number, {})) for one in found]
