"""Video files to frames, by PyAV (the extra ``video``): in order, with the seconds at which each is shown.

The file is given to FFmpeg as an open stream, and its container is the one that its name says: a playlist under the
name of a video is damaged input, and no other file or address is ever opened for it. Times are the file's own, so a
variable rate of frames is no special case.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.base.border import one_line, shown

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".avi": "avi", ".mkv": "matroska", ".webm": "matroska"}
MISSING = "videos are read by PyAV, which is not installed; pip install 'fine-grained-vlm[video]'"
MAYBE_CUT = "it may be cut: an mp4 has its table at the end"
CUT_SHARE = 0.05  # of the seconds that a header promises; writers round, and sound may go on a little longer
CUT_SECONDS = 0.5  # and at least so many


class VideoFault(ValueError):
    """A video cannot be read, or not to its end.

    ``kind``: ``missing_video``, ``unknown_container``, ``unreadable_video``, ``no_video_stream`` (as audio alone),
    ``no_frames``, ``frame_times``, ``too_many_pixels``, ``damaged_video`` or ``cut_video``.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class VideoFrame:
    """One frame. ``number`` counts the decoded ones from 0; ``seconds`` from the video's first frame."""

    number: int
    seconds: float
    decoded: Any  # PyAV's frame

    def image(self) -> Image.Image:
        """The frame as RGB, upright."""
        picture: Image.Image = self.decoded.to_image()
        turn = self.decoded.rotation
        return picture.rotate(turn, expand=True) if turn else picture


def is_video(path: Path) -> bool:
    """Whether the name is that of a video file."""
    return path.suffix.lower() in CONTAINERS


def read_video(path: str | Path, max_megapixels: float = 100.0) -> Iterator[VideoFrame]:
    """Every frame of a video file, in the order in which they are shown.

    Frames whose time does not go on are left out: of equal times the first one counts.

    Raises:
        VideoFault: also at the end, where the file breaks off or is damaged; what stands before has been given then.
        ImportError: PyAV is not installed.
    """
    path = Path(path)
    with _opened(path) as container:
        if not container.streams.video:
            kinds = sorted({stream.type for stream in container.streams})
            if not kinds:
                raise VideoFault("unreadable_video", f"{shown(path)} holds no stream; {MAYBE_CUT}")
            raise VideoFault("no_video_stream", f"{shown(path)} holds {' and '.join(kinds)}, no pictures")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        count, begin, last = 0, None, -1.0
        for frame in _decoded(container, stream, path):
            if frame.width * frame.height > max_megapixels * 1e6:
                told = f"{shown(path)}: a frame has {frame.width} x {frame.height} pixels"
                raise VideoFault("too_many_pixels", f"{told}; at most {max_megapixels:g} million are allowed")
            seconds = _seconds(frame, count, stream.average_rate, path)
            begin = seconds if begin is None else begin
            if seconds - begin > last:
                last = seconds - begin
                yield VideoFrame(count, last, frame)
            count += 1
        if count == 0:
            raise VideoFault("no_frames", f"{shown(path)} has a stream of pictures without a frame")
        promised = _promised_seconds(container, stream)
        if last + last / count < promised - max(CUT_SECONDS, CUT_SHARE * promised):
            raise VideoFault("cut_video", f"{shown(path)} breaks off after {last:.1f} of {promised:.1f} seconds")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import av  # an extra: those who train on images or on shards do without
    except ImportError as error:
        raise ImportError(MISSING) from error
    container = CONTAINERS.get(path.suffix.lower())
    if container is None:
        known = ", ".join(CONTAINERS)
        raise VideoFault("unknown_container", f"{shown(path)} is no video by its name; it must end in one of {known}")
    try:
        file = open(path, "rb")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError) as error:
        raise VideoFault("missing_video", f"{shown(path)} does not exist") from error
    with file:
        try:
            opened = av.open(file, format=container, metadata_errors="replace")
        except (av.error.FFmpegError, ValueError, EOFError, OSError, MemoryError) as error:
            told = f"{shown(path)} cannot be read as {container} ({one_line(error)})"
            raise VideoFault("unreadable_video", f"{told}; {MAYBE_CUT}") from error
        with opened:
            yield opened


def _decoded(container: Any, stream: Any, path: Path) -> Iterator[Any]:
    import av  # as above

    try:
        yield from container.decode(stream)
    except (av.error.FFmpegError, ValueError, EOFError, OSError, MemoryError) as error:
        raise VideoFault("damaged_video", f"{shown(path)} is damaged ({one_line(error)})") from error


def _promised_seconds(container: Any, stream: Any) -> float:
    """How long the pictures go on, as the file's header says; 0 where it does not."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is None or len(container.streams) > 1:  # of the longest stream, which may be sound
        return 0.0
    return container.duration / 1e6  # FFmpeg's AV_TIME_BASE


def _seconds(frame: Any, number: int, rate: Fraction | None, path: Path) -> float:
    """When a frame is shown; by its number where the file tells times of none (raw streams, old AVI files)."""
    if frame.time is not None:
        return float(frame.time)
    if not rate:
        raise VideoFault("frame_times", f"{shown(path)} tells neither the times of its frames nor their rate")
    return float(number / rate)
