"""Small video files for tests, written with PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

CODECS = {".mp4": "mpeg4", ".avi": "mpeg4", ".mkv": "mpeg4", ".webm": "libvpx"}
TIME_BASE = Fraction(1, 1000)


def grey(level: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """[height, width, 3] of one level."""
    return np.full((size[1], size[0], 3), level, np.uint8)


def write_video(path: Path, frames: Sequence[np.ndarray], times: Sequence[float] | float = 10.0) -> Path:
    """``times``: frames a second, or the second at which each is shown."""
    import av

    seconds = [number / times for number in range(len(frames))] if isinstance(times, int | float) else list(times)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS[path.suffix], rate=1000)
        stream.height, stream.width = frames[0].shape[:2] if frames else (48, 64)
        stream.pix_fmt, stream.gop_size, stream.bit_rate = "yuv420p", 4, 40_000_000
        stream.codec_context.time_base = TIME_BASE
        for picture, second in zip(frames, seconds, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(second / TIME_BASE), TIME_BASE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_audio(path: Path) -> Path:
    """A second of silence in a container of videos."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for start in range(0, 16384, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut_in_half(path: Path, target: Path) -> Path:
    """A copy that breaks off in the middle."""
    data = path.read_bytes()
    target.write_bytes(data[: len(data) // 2])
    return target
