"""Clips for tests of evaluation: frames of one colour each, so that a model of colours has to read them in order."""

from __future__ import annotations

import io
from pathlib import Path

from data_tools.shards import Record, write_shard
from pipeline.data.schema import Region, Sample
from tests.evaluation.fake import solid

COLOURS = {"r": (250, 10, 10), "g": (10, 250, 10), "b": (10, 10, 250), "x": (110, 110, 110)}
SIZE = (48, 32)


def picture(colour: str) -> bytes:
    """A PNG of one letter's colour; two letters: left and right half."""
    image = solid(COLOURS[colour[0]], SIZE)
    if len(colour) > 1:
        image.paste(COLOURS[colour[1]], (SIZE[0] // 2, 0, *SIZE))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def clip(key: str, colours: list[str], language: str = "en", regions: tuple[Region, ...] = (), **more) -> Record:
    """A clip of a frame for each entry of ``colours``."""
    times = tuple(0.5 * number for number in range(len(colours)))
    caption = {"short_caption": f"a clip {key}"} if not {"short_caption", "long_caption"} & set(more) else {}
    sample = Sample(language, *SIZE, regions=regions, frames=times, **caption, **more)
    return Record(key, b"", "png", sample, frames=tuple(map(picture, colours)))


def write_clips(folder: Path, records: list[Record]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_shard(folder / "clips-000000.tar", records)
    return folder
