"""Jobs on the cores of this machine, one process a worker.

Not ``concurrent.futures``: there one killed process (out of memory, most often) breaks the whole pool, here its job
goes to a new one. Workers end with the process that started them, however that one ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from data_tools.execution.jobs import ATTEMPTS, Job, JobResult, Work, do_job

PROGRESS_SECONDS = 0.5
GRACE_SECONDS = 5.0  # for a worker asked to end, before it is killed


class WorkerFailed(RuntimeError):
    """A worker ended with an exception that is a defect; its trace is on standard error."""


class LocalExecutor:
    """``workers`` processes, by default one a core that this process may use."""

    def __init__(self, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers is {workers}; it must be at least 1")
        self.workers = workers or len(os.sched_getaffinity(0))

    def run(self, work: Work, jobs: Sequence[Job], progress: Callable[[int], None]) -> Iterator[JobResult]:
        """Yield results as jobs end. After a result that ``stops`` no job is begun, those in hand are finished.

        Raises:
            WorkerFailed: a worker ended with an exception other than bad input or a failing disk.
        """
        pool = _Pool(work, jobs, min(self.workers, len(jobs)))
        try:
            yield from pool.results(progress)
        finally:
            pool.close()


class _Pool:
    def __init__(self, work: Work, jobs: Sequence[Job], workers: int) -> None:
        self.work, self.waiting, self.size = work, deque(jobs), workers
        self.lost: Counter[str] = Counter()
        self.members: dict[Connection, tuple[BaseProcess, int, Job | None]] = {}
        for number in range(workers):
            self._start(number)

    def _start(self, number: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads (torch, arrow) may hang
        ours, theirs = context.Pipe()
        process = context.Process(target=_worker, args=(theirs, self.work, number), daemon=True)
        with _threads_for(self.size):
            process.start()
        theirs.close()
        self.members[ours] = (process, number, None)
        self._give(ours)

    def _give(self, pipe: Connection) -> None:
        process, number, _ = self.members[pipe]
        job = self.waiting.popleft() if self.waiting else None
        self.members[pipe] = (process, number, job)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died; its sentinel tells in a moment
            pipe.send(job)

    def results(self, progress: Callable[[int], None]) -> Iterator[JobResult]:
        while self.members:
            ready = set(wait(list(self.members), timeout=PROGRESS_SECONDS))
            for pipe in [pipe for pipe in self.members if pipe in ready]:
                try:
                    message = pipe.recv()
                except (EOFError, ConnectionResetError):
                    result = self._ended(pipe)
                    if result is not None:
                        yield result
                    continue
                if isinstance(message, int):
                    progress(message)
                    continue
                if message.stops:
                    self.waiting.clear()
                self._give(pipe)
                yield message
            progress(0)

    def _ended(self, pipe: Connection) -> JobResult | None:
        """A worker's pipe closed: it had nothing left to do, or it died and its job needs another worker."""
        process, number, job = self.members.pop(pipe)
        pipe.close()
        process.join()
        if job is None and process.exitcode == 0:
            return None
        if process.exitcode is not None and process.exitcode > 0:
            what = f"on {job.name}" if job else "at its end"
            raise WorkerFailed(f"worker {number} failed {what} (status {process.exitcode}); its trace is above")
        if job is None:
            return None
        self.lost[job.name] += 1
        if self.lost[job.name] < ATTEMPTS:
            print(f"worker {number} was killed on {job.name}; a new one takes over", file=sys.stderr, flush=True)
            self.waiting.appendleft(job)
            self._start(number)
            return None
        self._start(number)
        how = f"signal {-process.exitcode}" if process.exitcode else "no result"
        return JobResult(job.name, error=f"{job.name}: its worker ended {ATTEMPTS} times ({how}); is memory short?")

    def close(self) -> None:
        for process, _, _ in self.members.values():
            process.terminate()
        until = time.monotonic() + GRACE_SECONDS
        for pipe, (process, _, _) in self.members.items():
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
            pipe.close()
        self.members = {}


def _worker(pipe: Connection, work: Work, number: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # leaves by the front door
    threading.Thread(target=_die_with_parent, daemon=True).start()
    last, pending = time.monotonic(), 0

    def progress(samples: int) -> None:
        nonlocal last, pending
        pending += samples
        if time.monotonic() - last >= PROGRESS_SECONDS:
            pipe.send(pending)
            last, pending = time.monotonic(), 0

    opened = False
    while (job := pipe.recv()) is not None:
        if not opened:
            work.open(number)
            opened = True
        result = do_job(work, job, progress)
        if pending:
            pipe.send(pending)
            pending = 0
        pipe.send(result)
    if opened:
        work.close()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def _threads_for(workers: int) -> Iterator[None]:
    """Number libraries of a child must not each start a thread a core; what the user has set stays."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // workers))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
