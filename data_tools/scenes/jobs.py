"""Scenes into shards: which are still to be drawn, their drawing by several processes, and the job's settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.execution.jobs import InProcess, Job
from data_tools.execution.local import LocalExecutor
from data_tools.execution.progress import Progress
from data_tools.shards import Record, shard_path, write_shard
from pipeline.base.border import read_object
from pipeline.base.files import remove_leftovers, write_json

MIN_SHARDS = 4  # of a split, so that small folders too can be read by several processes
MakeRecord = Callable[[int, str, int], Record]  # (seed, split, number): pure, and picklable by name


@dataclass(frozen=True)
class Split:
    """How many scenes a split has, and a shard of it at most."""

    total: int
    most_per_shard: int


@dataclass(frozen=True)
class ShardTask:
    """One shard's scenes: numbers within the split."""

    path: Path
    split: str
    first: int
    last: int  # exclusive
    seed: int


@dataclass(frozen=True)
class Folder:
    """Where the scenes of one job go: ``summary`` is written last, ``plan`` holds the settings of a job under way."""

    path: Path
    summary: str
    plan: str

    def is_complete(self, settings: Mapping[str, int]) -> bool:
        file = self.path / self.summary
        return file.is_file() and read_object(file).get("settings") == settings

    def begin(self, settings: Mapping[str, int]) -> None:
        """Note the settings, so that shards of two different jobs never mix in one folder.

        Raises:
            ValueError: the folder holds, or is about to hold, scenes of other settings.
        """
        for file in (self.path / self.summary, self.path / self.plan):
            if file.is_file() and (found := read_object(file).get("settings")) != settings:
                raise ValueError(f"{file} names other settings, {found}; choose another --out or delete that folder")
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / self.plan, {"settings": settings})

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary: the job is done."""
        write_json(self.path / self.summary, summary)
        (self.path / self.plan).unlink(missing_ok=True)


def draw_all(
    out: Path, splits: Mapping[str, Split], seed: int, make_record: MakeRecord, workers: int | None, title: str
) -> None:
    """Draw every shard that is not there, and index each split's folder.

    Raises:
        OSError: one could not be written; the others are.
    """
    jobs = []
    for split, size in splits.items():
        (out / split).mkdir(exist_ok=True)
        per_shard = min(size.most_per_shard, -(-size.total // MIN_SHARDS))
        for shard, first in enumerate(range(0, size.total, per_shard)):
            path = shard_path(out / split, split, shard)
            remove_leftovers(path, of_all=True)
            if not path.is_file():
                task = ShardTask(path, split, first, min(first + per_shard, size.total), seed)
                jobs.append(Job(f"{split}/{path.name}", task))
    if jobs:
        executor = InProcess() if workers == 1 or len(jobs) == 1 else LocalExecutor(workers)
        shown = Progress(title, len(jobs))
        for result in executor.run(DrawShards(make_record), jobs, shown.add):
            if result.error is not None:
                raise OSError(f"{result.error}; run the same command again to go on")
            shown.job(skipped=False)
        shown.end()
    from pipeline.data.index import index_folder  # here, so that --help answers without loading pyarrow

    for split in splits:
        index_folder(out / split)


class DrawShards:
    """The work of one job: draw and write one shard."""

    def __init__(self, make_record: MakeRecord) -> None:
        self.make_record = make_record

    def open(self, worker: int) -> None:
        """Nothing is loaded."""

    def close(self) -> None:
        """Nothing is held."""

    def do(self, job: Job, progress: Callable[[int], None]) -> int:
        task: ShardTask = job.payload

        def records() -> Iterator[Record]:
            for number in range(task.first, task.last):
                yield self.make_record(task.seed, task.split, number)
                progress(1)

        return write_shard(task.path, records())
