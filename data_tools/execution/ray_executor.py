"""Jobs on the machines of a Ray cluster (the extra ``ray``). All machines must see input and output under one path.

A worker is an actor that gets one job at a time. A job whose actor, machine or connection died goes to another one;
actors that find no room wait without a job, so a cluster that shrinks goes on and one that grows is used.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data_tools.execution.jobs import ATTEMPTS, Job, JobResult, Work, do_job
from data_tools.execution.local import WorkerFailed
from pipeline.base.border import one_line

WAIT_SECONDS = 1.0


class RayExecutor:
    """``workers`` actors, by default one a CPU of the cluster; each reserves one CPU and ``gpus_per_worker``."""

    def __init__(self, workers: int | None = None, *, address: str | None = None, gpus_per_worker: float = 0.0) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers is {workers}; on Ray it must be at least 1")
        self.workers, self.address, self.gpus_per_worker = workers, address, gpus_per_worker

    def run(self, work: Work, jobs: Sequence[Job], progress: Callable[[int], None]) -> Iterator[JobResult]:
        """Yield results as jobs end. After a result that ``stops`` no job is begun, those in hand are finished.

        Raises:
            ValueError: Ray is not installed. WorkerFailed: a worker raised what is a defect.
        """
        try:
            import ray
        except ImportError as error:
            raise ValueError("--executor ray needs Ray; install the extra: pip install '.[ray]'") from error
        started_here = not ray.is_initialized()
        if started_here:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
            ray.init(address=self.address, include_dashboard=None, logging_level=logging.WARNING)
        number = min(self.workers or int(ray.cluster_resources().get("CPU", 1)), len(jobs))
        pool = _Actors(ray, work, jobs, number, self.gpus_per_worker)
        try:
            yield from pool.results(progress)
        finally:
            pool.close()
            if started_here:
                ray.shutdown()


class _Actors:
    def __init__(self, ray: Any, work: Work, jobs: Sequence[Job], number: int, gpus: float) -> None:
        self.ray, self.waiting = ray, deque(jobs)
        self.lost: Counter[str] = Counter()
        self.lost_errors = (
            ray.exceptions.RayActorError,
            ray.exceptions.NodeDiedError,
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.OutOfMemoryError,
            ray.exceptions.ObjectLostError,
        )
        self._class = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)(_Worker)
        self._work = ray.put(work)
        self.pending: dict[Any, tuple[Any, Job | None]] = {}  # reference -> (actor, its job, or None: getting ready)
        for _ in range(number):
            self._start()

    def _start(self) -> None:
        actor = self._class.remote(self._work)
        self.pending[actor.ready.remote()] = (actor, None)

    def results(self, progress: Callable[[int], None]) -> Iterator[JobResult]:
        while self.waiting or any(job for _, job in self.pending.values()):
            ended, _ = self.ray.wait(list(self.pending), timeout=WAIT_SECONDS)
            for reference in ended:
                actor, job = self.pending.pop(reference)
                try:
                    answer = self.ray.get(reference)
                except self.lost_errors as error:
                    result = self._died(job, error)
                    if result is not None:
                        yield result
                    continue
                except self.ray.exceptions.RayTaskError as error:
                    raise WorkerFailed(f"a worker failed on {job.name if job else 'its start'}:\n{error}") from error
                if job is not None:
                    result, samples = answer
                    progress(samples)
                    if result.stops:
                        self.waiting.clear()
                    yield result
                if self.waiting:
                    job = self.waiting.popleft()
                    self.pending[actor.do.remote(job)] = (actor, job)
                else:
                    self.ray.kill(actor)
            progress(0)

    def _died(self, job: Job | None, error: Exception) -> JobResult | None:
        self._start()
        if job is None:
            return None
        self.lost[job.name] += 1
        why = one_line(error, 200)
        if self.lost[job.name] < ATTEMPTS:
            print(f"the worker on {job.name} was lost ({why}); another takes over", file=sys.stderr, flush=True)
            self.waiting.appendleft(job)
            return None
        return JobResult(job.name, error=f"{job.name}: its worker was lost {ATTEMPTS} times ({why}); is memory short?")

    def close(self) -> None:
        for actor, _ in self.pending.values():
            self.ray.kill(actor)
        self.pending = {}


class _Worker:
    """The actor."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.work.open(0)  # Ray shows each actor only its own accelerators, so all count from 0

    def ready(self) -> None:
        """Answers once the actor has found its place."""

    def do(self, job: Job) -> tuple[JobResult, int]:
        samples = 0

        def progress(number: int) -> None:
            nonlocal samples
            samples += number

        return do_job(self.work, job, progress), samples
