"""What executors run: jobs, the work done on them, and how it ends."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

# A disk that is full or read-only is so for every other job too.
STOPPING_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
ATTEMPTS = 3  # a job that saw its worker killed this often (mostly for memory) is given up


class StopRun(ValueError):
    """Going on with other jobs is pointless: a budget is spent, a server is gone, a disk is full."""


@dataclass(frozen=True)
class Job:
    """A unit of work that one worker claims; ``payload`` must be picklable."""

    name: str
    payload: Any


@dataclass(frozen=True)
class JobResult:
    """How a job ended: ``value``, or ``error`` with ``stops`` telling whether the others should end too."""

    name: str
    value: Any = None
    error: str | None = None
    stops: bool = False


class Work(Protocol):
    """What is done with a job. Sent to each worker once; ``open`` loads what is expensive to load."""

    def open(self, worker: int) -> None: ...

    def do(self, job: Job, progress: Callable[[int], None]) -> Any: ...

    def close(self) -> None: ...


class Executor(Protocol):
    """Yields one result a job, in the order in which they end. Closing the iterator stops all workers."""

    def run(self, work: Work, jobs: Sequence[Job], progress: Callable[[int], None]) -> Iterator[JobResult]: ...


def do_job(work: Work, job: Job, progress: Callable[[int], None]) -> JobResult:
    """Do a job; bad input and failing disks become its result, any other exception is a defect and is raised."""
    try:
        return JobResult(job.name, value=work.do(job, progress))
    except StopRun as error:
        return JobResult(job.name, error=str(error), stops=True)
    except OSError as error:
        return JobResult(job.name, error=f"{job.name}: {error}", stops=error.errno in STOPPING_ERRNOS)
    except ValueError as error:
        return JobResult(job.name, error=str(error))


class InProcess:
    """All jobs one after the other in this process: for tests, debuggers and very small folders."""

    def run(self, work: Work, jobs: Sequence[Job], progress: Callable[[int], None]) -> Iterator[JobResult]:
        work.open(0)
        try:
            for job in jobs:
                result = do_job(work, job, progress)
                yield result
                if result.stops:
                    return
        finally:
            work.close()
