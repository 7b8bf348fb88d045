"""The work of one shard: claim it, read it, apply the step, write the shard aside, rename it, report."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from data_tools.execution.interface import Shard, Step
from data_tools.execution.jobs import Job, StopRun
from data_tools.execution.journal import Journal
from data_tools.execution.reports import Dropped, ShardReport, StepReport, read_report
from data_tools.execution.shards import Drop, Record, ShardSource
from data_tools.shards import write_shard
from pipeline.base.border import BorderError, as_read_back
from pipeline.base.files import remove_leftovers, write_json

CLAIM_SECONDS = 3.0  # a worker whose machine was declared dead may need a moment to end
REPORTS, WORK = "reports", ".work"  # subfolders of an output folder; WORK holds locks and journals


class ShardWork:
    """The work of one job: claim, read, apply, write, report."""

    def __init__(
        self,
        step: Step | None,
        output: Path,
        *,
        retry_failed: bool,
        overwrite: bool,
        index: bool,
        earlier_reports: Path | None,
    ) -> None:
        self.step, self.output, self.index = step, output, index
        self.retry_failed, self.overwrite, self.earlier_reports = retry_failed, overwrite, earlier_reports
        self._worker = 0
        self._opened = False

    def open(self, worker: int) -> None:
        self._worker = worker  # models are loaded at the first unfinished shard, so that a rerun of nothing is quick

    def close(self) -> None:
        if self._opened and self.step is not None:
            self.step.close()

    def do(self, job: Job, progress: Callable[[int], None]) -> tuple[ShardReport, bool]:
        """The shard's report, and whether it was finished before."""
        source: ShardSource = job.payload
        work_folder = self.output / WORK
        work_folder.mkdir(parents=True, exist_ok=True)
        (self.output / REPORTS).mkdir(exist_ok=True)
        made_by = self._made_by(source)
        with _claim(work_folder / f"{job.name}.lock"):
            finished = self._finished(source, made_by)
            if finished is not None:
                return finished, True
            # Of a killed worker, on whatever machine: the claim tells that it writes no more.
            remove_leftovers(self.output / f"{job.name}.tar", of_all=True)
            if self.step is not None and not self._opened:
                self.step.open(self._worker)
                self._opened = True
            return self._make(source, made_by, progress), False

    def _made_by(self, source: ShardSource) -> dict[str, Any]:
        step = self.step
        made_by: dict[str, Any] = {"input": source.identity()}
        if step is not None:
            made_by |= {"step": step.name, "version": step.version, "settings": step.settings()}
        return as_read_back(made_by)  # what is compared with it comes from a file

    def _report_path(self, name: str) -> Path:
        return self.output / REPORTS / f"{name}.json"

    def _finished(self, source: ShardSource, made_by: dict[str, Any]) -> ShardReport | None:
        path = self._report_path(source.name)
        if not path.exists():
            return None
        try:
            report = read_report(path)
        except BorderError:  # a power cut or a full disk: as if the shard had not been finished
            path.unlink()
            return None
        tar = self.output / f"{source.name}.tar"
        there, asked = ({k: v for k, v in made.items() if k != "input"} for made in (report["made_by"], made_by))
        if there != asked and not self.overwrite:
            raise StopRun(
                f"{tar} was made by {json.dumps(there, ensure_ascii=False)}; asked for is "
                f"{json.dumps(asked, ensure_ascii=False)}: give another folder or --overwrite"
            )
        # Other input is worked on without a question: nobody who changed it wants the old result.
        stale = report["made_by"] != made_by or source.changed_at() > path.stat().st_mtime
        lost = report["samples_out"] > 0 and not tar.exists()
        if stale or lost or (self.retry_failed and report["failed"]):
            path.unlink()
            return None
        return report

    def _make(self, source: ShardSource, made_by: dict[str, Any], progress: Callable[[int], None]) -> ShardReport:
        fingerprint = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()
        journal = Journal(self.output / WORK / f"{source.name}.journal.jsonl", fingerprint)
        shard, read = Shard(source.name, journal, self.output / WORK), 0
        dropped: list[Dropped] = []

        def results() -> Iterator[Record]:
            nonlocal read
            for results, number in _batches(source.records(), self.step, shard):
                read += number
                for result in results:
                    if isinstance(result, Drop):
                        dropped.append({"key": result.key, "reason": result.reason, "detail": result.detail})
                    else:
                        yield result
                progress(number)

        tar = self.output / f"{source.name}.tar"
        try:
            written = write_shard(tar, results())
            if not written:
                tar.unlink(missing_ok=True)  # an older one, of other settings
            elif self.index:
                from pipeline.data.index import index_shard  # loads torch and arrow, which not every step needs

                index_shard(tar)
            earlier = self._earlier(source.name)
            report: ShardReport = {
                "shard": source.name,
                "made_by": made_by,
                "samples_in": read,
                "samples_out": written,
                "dropped": dropped,
                "failed": [{"key": key, "why": why} for key, why in sorted(shard.failed.items())],
                "counts": dict(sorted(shard.counts.items())),
                "earlier": earlier,
            }
            write_json(self._report_path(source.name), report, durable=True)
            if not shard.failed:
                journal.remove()
        finally:
            journal.close()
        return report

    def _earlier(self, name: str) -> list[StepReport]:
        """The reports of the steps that made the input, oldest first."""
        path = self.earlier_reports / f"{name}.json" if self.earlier_reports else None
        if path is None or not path.exists():
            return []
        last = read_report(path)
        step: StepReport = {name: value for name, value in last.items() if name != "earlier"}  # type: ignore[assignment]
        return [*last["earlier"], step]


def _batches(
    records: Iterable[Record | Drop], step: Step | None, shard: Shard
) -> Iterator[tuple[list[Record | Drop], int]]:
    """Results in the order of the records; what the source drops keeps its place."""
    size = step.batch_size if step else 1
    batch: list[Record | Drop] = []

    def flush() -> tuple[list[Record | Drop], int]:
        good = [record for record in batch if not isinstance(record, Drop)]
        changed = iter(step.apply(good, shard) if step and good else good)
        return [item if isinstance(item, Drop) else next(changed) for item in batch], len(batch)

    for record in records:
        batch.append(record)
        if len(batch) >= size:
            yield flush()
            batch = []
    if batch:
        yield flush()


@contextlib.contextmanager
def _claim(path: Path) -> Iterator[None]:
    """Hold the lock of a shard; the operating system gives it back when its holder dies."""
    until = time.monotonic() + CLAIM_SECONDS
    with open(path, "w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise ValueError(f"another run is at work on it (it holds {path})") from error
                time.sleep(0.1)
        yield
