"""Videos with the frames of which something is abnormal: UCF-Crime's and XD-Violence's annotation files.

UCF-Crime: ``NAME.mp4  Class  first  last  first  last`` a line, -1 where there is no (second) event; frames count from
1, the last one belongs to the event. XD-Violence: ``NAME first last first last …`` a line for each violent test video;
the others are the files whose name ends in ``label_A``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.border import quoted, read_lines
from pipeline.data.video import CONTAINERS, is_video
from pipeline.evaluation.results import Accounting, EvaluationError

MAX_FRAME = 10_000_000  # of a frame's number
NORMAL_MARK = "label_A"  # at the end of the names of XD-Violence's normal videos
Interval = tuple[int, int]  # the first and the last frame of an event, from 1


@dataclass(frozen=True)
class LabelledVideo:
    """A video file and its events."""

    key: str
    path: Path
    events: tuple[Interval, ...]

    def labels(self, num_frames: int) -> list[int]:
        """0 or 1 of each frame."""
        labels = [0] * num_frames
        for first, last in self.events:
            for frame in range(max(first, 1) - 1, min(last, num_frames)):
                labels[frame] = 1
        return labels


@dataclass
class VideoSet:
    """The videos of a set that are there."""

    videos: list[LabelledVideo]
    accounting: Accounting


def recognise_anomaly(path: Path) -> str:
    """``shards``, ``ucf-crime`` or ``xd-violence``, by the form of the data.

    Raises:
        EvaluationError: it has none of these.
    """
    if path.is_dir():
        return "shards"
    for line in read_lines(path, 4096):
        words = line.split()
        if len(words) >= 4 and _number(words[1]) is None and all(_number(word) is not None for word in words[2:]):
            return "ucf-crime"
        if len(words) >= 3 and all(_number(word) is not None for word in words[1:]):
            return "xd-violence"
    raise EvaluationError(
        f"{path} has no line of UCF-Crime's or XD-Violence's form; give the published file, or shards"
    )


def read_anomaly(path: Path, form: str, videos: Path | None) -> VideoSet:
    """The set of an annotation file. Lines that cannot be used are counted: ``bad_line``, ``missing_video``,
    ``duplicate_video``.

    Args:
        videos: folder of the videos, at any depth; None: that of the file.
    Raises:
        EvaluationError: there is no such folder.
    """
    folder = videos or path.parent
    if not folder.is_dir():
        raise EvaluationError(f"folder {folder} does not exist; give --videos the folder of the videos")
    files = {_name(file.name): file for file in sorted(folder.rglob("*")) if is_video(file)}
    found = VideoSet([], Accounting("videos"))
    seen: set[str] = set()
    for where, name, events in _rows(path, _ucf_events if form == "ucf-crime" else _xd_events):
        if name is None or events is None:
            found.accounting.skip("bad_line", where)
        elif name in seen:
            found.accounting.skip("duplicate_video", f"{where}: {name}")
        elif name not in files:
            found.accounting.skip("missing_video", f"{where}: {name}")
        else:
            seen.add(name)
            found.accounting.take()
            found.videos.append(LabelledVideo(name, files[name], events))
    for name in sorted(set(files) - seen) if form == "xd-violence" else ():
        if name.endswith(NORMAL_MARK):
            found.accounting.take()
            found.videos.append(LabelledVideo(name, files[name], ()))
    return found


def _rows(
    path: Path, events_of: Callable[[list[bytes]], tuple[Interval, ...] | None]
) -> Iterator[tuple[str, str | None, tuple[Interval, ...] | None]]:
    """``(place, name, events)`` of each line; None where it cannot be read."""
    for number, line in enumerate(read_lines(path, 1 << 16), start=1):
        words = line.split()
        if not words:
            continue
        where = f"{path.name}:{number}"
        try:
            name = _name(words[0].decode("utf-8"))
        except UnicodeDecodeError:
            yield f"{where}: {quoted(line)}", None, None
            continue
        events = events_of(words[1:])
        yield (where if events is not None else f"{where}: {quoted(line)}"), name, events


def _ucf_events(words: list[bytes]) -> tuple[Interval, ...] | None:
    return _pairs(words[1:]) if words and _number(words[0]) is None else None


def _xd_events(words: list[bytes]) -> tuple[Interval, ...] | None:
    return _pairs(words) if words else None


def _pairs(words: list[bytes]) -> tuple[Interval, ...] | None:
    """Events of numbers two by two; -1 -1 is none. None where they are no such numbers."""
    numbers = [_number(word) for word in words]
    if len(numbers) % 2 or any(number is None for number in numbers):
        return None
    pairs = [(a, b) for a, b in zip(numbers[::2], numbers[1::2], strict=True) if a is not None and b is not None]
    events = [(first, last) for first, last in pairs if (first, last) != (-1, -1)]
    return tuple(events) if all(0 <= first <= last for first, last in events) else None


def _number(word: bytes) -> int | None:
    text = word.decode("ascii", "replace")
    if not text.removeprefix("-").isdecimal() or len(text) > 9:
        return None
    return int(text) if abs(int(text)) <= MAX_FRAME else None


def _name(name: str) -> str:
    """A video's name without its ending; XD-Violence's have dots inside, and not always an ending."""
    lower = name.lower()
    ending = next((suffix for suffix in CONTAINERS if lower.endswith(suffix)), "")
    return name.rpartition("/")[2][: -len(ending) or None]
