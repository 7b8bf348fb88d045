"""Steps: what turns records into better records, run over a folder of shards.

    run_step(step, "DIR", "OUT") -> RunSummary

A step is a `Step` (records in, the same records changed or `Drop` with a reason out) or, for a plain function of one
record, a `FunctionStep`. Shard by shard, in any order, on any number of workers:

- a worker claims the shard by locking a file, so a second run beside the first takes other shards;
- ``OUT/NAME.tar`` is written aside and renamed, then ``OUT/reports/NAME.json``, which makes the shard finished:
  it says what went in and out, what was dropped or failed and why, and which steps and settings made it;
- a shard with a report is skipped; answers that cost something are in its journal until then, so kill -9 loses none;
- nothing in a shard or its report depends on time, on the number of workers or on how often a run was cut short.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.execution.interface import FunctionStep, Shard, Step
from data_tools.execution.jobs import Executor, Job
from data_tools.execution.local import LocalExecutor
from data_tools.execution.progress import Progress
from data_tools.execution.reports import ShardReport
from data_tools.execution.shard_work import REPORTS, ShardWork
from data_tools.execution.shards import Drop, Record, ShardSource, tar_shards

__all__ = ["Drop", "FunctionStep", "Record", "RunSummary", "Shard", "Step", "run_shards", "run_step"]

NAMED_SHARDS = 20  # in a summary; a run that stops early leaves thousands that all say the same


@dataclass
class RunSummary:
    """What a run did. ``ok`` is False while a shard is unfinished or a sample failed."""

    shards: int = 0
    skipped: int = 0
    samples_in: int = 0
    samples_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    unfinished: dict[str, str] = field(default_factory=dict)  # shard -> why

    @property
    def ok(self) -> bool:
        return not self.unfinished and not self.failed

    def lines(self) -> Iterator[str]:
        shards = f"{self.shards} shards ({self.skipped} were finished before)"
        yield f"{shards}: {self.samples_in} samples in, {self.samples_out} out"
        for title, counter in (("dropped", self.dropped), ("failed", self.failed), ("counted", self.counts)):
            if counter:
                yield f"{title}: " + ", ".join(f"{what} {number}" for what, number in sorted(counter.items()))
        if self.failed:
            yield "the failed samples went on without this step's result; run again with --retry-failed"
        for shard, why in sorted(self.unfinished.items())[:NAMED_SHARDS]:
            yield f"unfinished: {shard}: {why}"
        if self.unfinished:
            yield f"{len(self.unfinished)} shards are unfinished; run the same command again to go on"


def run_step(
    step: Step,
    input_folder: str | Path,
    output_folder: str | Path,
    *,
    executor: Executor | None = None,
    retry_failed: bool = False,
    overwrite: bool = False,
    index: bool = True,
) -> RunSummary:
    """Run ``step`` over every shard of ``input_folder`` into shards of the same names in ``output_folder``.

    ``executor``: `LocalExecutor` by default (all cores), `InProcess`, or `RayExecutor`. ``retry_failed`` does shards
    with failed samples again; their other answers come from the journal. ``overwrite`` replaces shards that other
    settings made. ``index`` writes each shard's index with it and the manifest once all are there.

    Raises:
        ValueError: no shards, equal folders, or shards of other settings in ``output_folder``.
        WorkerFailed: a defect in the step.
    """
    if Path(input_folder).resolve() == Path(output_folder).resolve():
        raise ValueError(f"input and output are both {input_folder}; a step writes new shards, give another folder")
    return run_shards(
        tar_shards(input_folder),
        step,
        output_folder,
        executor=executor,
        retry_failed=retry_failed,
        overwrite=overwrite,
        index=index,
        earlier_reports=Path(input_folder) / REPORTS,
    )


def run_shards(
    sources: Sequence[ShardSource],
    step: Step | None,
    output_folder: str | Path,
    *,
    executor: Executor | None = None,
    retry_failed: bool = False,
    overwrite: bool = False,
    index: bool = True,
    earlier_reports: Path | None = None,
    title: str | None = None,
) -> RunSummary:
    """As `run_step`, from any sources; without a step the records are written as they come."""
    work = ShardWork(
        step,
        Path(output_folder),
        retry_failed=retry_failed,
        overwrite=overwrite,
        index=index,
        earlier_reports=earlier_reports,
    )
    jobs = [Job(source.name, source) for source in sources]
    if len({job.name for job in jobs}) < len(jobs):
        raise ValueError("two input shards have the same name; their outputs would overwrite each other")
    summary, progress = RunSummary(), Progress(title or (step.name if step else "read"), len(jobs))
    for result in (executor or LocalExecutor()).run(work, jobs, progress.add):
        if result.error is not None:
            summary.unfinished[result.name] = result.error
            continue
        report, skipped = result.value
        progress.job(skipped)
        _add(summary, report, skipped)
    progress.end()
    for job in jobs:  # a run that had to stop never came to these
        if not (Path(output_folder) / REPORTS / f"{job.name}.json").exists():
            summary.unfinished.setdefault(job.name, "not begun")
    if index and not summary.unfinished and summary.samples_out:
        from pipeline.data.index import index_folder  # loads torch and arrow, which not every step needs

        index_folder(Path(output_folder))  # collects: the shards' indexes are there already
    return summary


def _add(summary: RunSummary, report: ShardReport, skipped: bool) -> None:
    summary.shards += 1
    summary.skipped += skipped
    summary.samples_in += report["samples_in"]
    summary.samples_out += report["samples_out"]
    summary.dropped.update(drop["reason"] for drop in report["dropped"])
    summary.counts.update(report["counts"])
    summary.failed.update(failure["why"].partition(":")[0] for failure in report["failed"])
