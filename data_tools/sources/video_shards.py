"""The clips of some videos, as they go into one shard: each video read once, whatever is left out named."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.execution.shards import Drop
from data_tools.execution.steps import Record, Shard, Step
from data_tools.sources.pairs import digest
from data_tools.sources.tracks import Problems, Track, Tracks
from data_tools.sources.video_clips import Cutting, Row, RowCutter
from data_tools.sources.video_rows import NumberedRow, VideoRowReader
from pipeline.base.border import shown
from pipeline.data.video import VideoFault, read_video


@dataclass(frozen=True)
class VideoShard:
    """Some videos with their rows; a video is read once for all of them."""

    name: str
    folder: Path
    rows: Mapping[str, tuple[NumberedRow, ...]]  # video -> (number, row of the table)
    reader: VideoRowReader
    cutting: Cutting
    tracks: Tracks | None
    files: tuple[Path, ...]
    problems: Problems = field(default_factory=Problems)  # of the whole table or file of tracks, in the first shard

    def identity(self) -> dict[str, Any]:
        sizes = [_bytes(self.folder / video) for video in self.rows]
        lines = (f"{video}|{rows}" for video, rows in self.rows.items())
        return {"videos": len(self.rows), "bytes": sum(sizes), "rows": digest(lines)}

    def changed_at(self) -> float:
        paths = [*self.files, *(self.folder / video for video in self.rows)]
        for video in self.rows if self.tracks is not None else ():
            paths += self.tracks.files(video) if self.tracks is not None else []
        return max((path.stat().st_mtime for path in paths if path.is_file()), default=0.0)

    def records(self) -> Iterator[Record | Drop]:
        yield from _told(self.name, self.problems)
        seen: set[str] = set()
        for video, rows in self.rows.items():
            for record in self._video(video, rows):
                if isinstance(record, Record) and record.key in seen:
                    record = Drop(record.key, "duplicate_key", f"{shown(video)}: an earlier clip has this key")
                seen.add(record.key)
                yield record

    def _video(self, video: str, numbered: Sequence[NumberedRow]) -> Iterator[Record | Drop]:
        read = [self.reader.row(values, number) for number, values in numbered]
        yield from (row for row in read if isinstance(row, Drop))
        rows = [row for row in read if isinstance(row, Row)]
        if not rows:
            return
        path = _inside(self.folder, video)
        if path is None:
            yield from (Drop(row.key, "video_outside", f"{shown(video)} lies outside of {self.folder}") for row in rows)
            return
        problems = Problems()
        tracks = self.tracks.of(video, problems) if self.tracks is not None else []
        cutters = [RowCutter(row, self.cutting, tracks, problems, video) for row in rows]
        last = -1
        fault: tuple[str, str] | None = None
        try:
            for frame in read_video(path):
                last = frame.number
                for cutter in cutters:
                    yield from cutter.take(frame)
                if all(cutter.is_done for cutter in cutters):
                    break
            else:
                _frames_not_there(tracks, last, video, problems)
        except VideoFault as error:
            fault = (error.kind, str(error))
        for cutter in cutters:
            yield from cutter.finish(fault)
        yield from _told(video, problems)


def _frames_not_there(tracks: Sequence[Track], last: int, video: str, problems: Problems) -> None:
    for track in tracks:
        beyond = sorted(number for number in track.boxes if number > last)
        if beyond:
            told = f"track {track.number} of {shown(video)} has boxes at frames from {beyond[0]} on"
            problems.add("boxes_without_frame", f"{told}; the video has {last + 1}, counted from 0", len(beyond))


def _told(name: str, problems: Problems) -> Iterator[Drop]:
    for kind, count in sorted(problems.counts.items()):
        yield Drop(shown(name), kind, f"{count} times; first: {problems.first[kind]}")


class CountClips(Step):
    """Changes nothing; counts frames and regions for the reports, and carries the settings."""

    name, version = "video", "1"

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings

    def settings(self) -> dict[str, Any]:
        return self._settings

    def apply(self, records: list[Record], shard: Shard) -> list[Record | Drop]:
        for record in records:
            shard.count("frames", len(record.frames))
            shard.count("regions", len(record.sample.regions))
        return list(records)


def _inside(folder: Path, video: str) -> Path | None:
    """Where a video is; None for a name that leads out of the folder. By the names alone: links are the user's word."""
    path = Path(os.path.abspath(folder / video))
    return path if path.is_relative_to(os.path.abspath(folder)) else None


def _bytes(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
