"""Small shards and steps for the tests of executors; at module level, because workers import them."""

from __future__ import annotations

import io
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from PIL import Image

from data_tools.execution.steps import Drop, Record, Shard, Step
from data_tools.shards import write_shard
from pipeline.data.schema import Sample


def picture(number: int, size: tuple[int, int] = (32, 24)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (number * 7 % 256, number * 31 % 256, 90)).save(stream, "PNG")
    return stream.getvalue()


def write_shards(folder: Path, num_shards: int, samples: int = 6, captions: bool = True) -> Path:
    """Shards ``s-000000.tar`` …, every third sample Chinese."""
    for shard in range(num_shards):
        records = []
        for number in range(samples):
            language = "zh" if number % 3 == 2 else "en"
            text = {"en": f"picture {number} of {shard}", "zh": f"第{shard}组的第{number}张图"}[language]
            sample = Sample(language, 32, 24, short_caption=text if captions else None)
            records.append(Record(f"{shard:03d}{number:03d}", picture(number + 17 * shard), "png", sample))
        write_shard(folder / f"s-{shard:06d}.tar", records)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every result below ``folder`` as bytes: what must not depend on how a run went."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in (".tar", ".json", ".parquet") and ".work" not in path.parts
    }


class Shout(Step):
    """Upper case; drops every fifth key. Asks a 'model' once a sample, which notes each question in ``asked``."""

    name, version, batch_size = "shout", "1", 2

    def __init__(self, asked: Path, kill_at: str = "", kills: int = 1, pause_seconds: float = 0.0) -> None:
        self.asked, self.kill_at, self.kills, self.pause_seconds = asked, kill_at, kills, pause_seconds

    def apply(self, records: list[Record], shard: Shard) -> list[Record | Drop]:
        return [self._one(record, shard) for record in records]

    def _one(self, record: Record, shard: Shard) -> Record | Drop:
        if record.key == self.kill_at and _count_up(self.asked.with_suffix(".kills")) <= self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = shard.journal.get(record.key)
        if answer is None:
            time.sleep(self.pause_seconds)
            with open(self.asked, "a") as stream:
                stream.write(record.key + "\n")
            answer = record.sample.short_caption.upper() + "！"
            shard.journal.put(record.key, answer)
        if int(record.key) % 5 == 0:
            shard.count("fifths")
            return Drop(record.key, "fifth", "a multiple of five")
        return replace(record, sample=replace(record.sample, long_caption=answer))


def _count_up(path: Path) -> int:
    with open(path, "a") as stream:
        stream.write("x")
    return path.stat().st_size


def refuse_third(record: Record) -> Record | Drop:
    return Drop(record.key, "third") if record.key.endswith("3") else record


class Broken(Step):
    """A step with a defect."""

    name = "broken"

    def apply(self, records: list[Record], shard: Shard) -> list[Record | Drop]:
        raise KeyError("a defect")
