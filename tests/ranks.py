"""Run one function on several ranks, each a process of its own, joined over gloo. The only such helper of the tests.

Processes come from a fork server that has imported torch once, so that a rank costs milliseconds instead of seconds.
Still, put many cases into one call: joining a group costs time, too, and smaller groups can be made inside
(`subgroups`).
"""

from __future__ import annotations

import datetime
import faulthandler
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

GRACE_SECONDS = 3.0  # after one rank has failed, the others get this long to report their own failure


class RankFailure(AssertionError):
    """A rank raised, died or did not report in time; the message holds every failing rank's traceback."""


def run_ranks(
    world_size: int,
    function: Callable[..., Any],
    *args: Any,
    timeout_seconds: float = 60.0,
    environment: dict[str, str] | None = None,
) -> list[Any]:
    """Call ``function(*args)`` on ``world_size`` ranks; the list of what they return, by rank.

    ``function`` is found by its name, so it must stand at the top of a module; arguments and results are pickled.
    Inside, ``torch.distributed`` is initialised (gloo, a file as store) and the rank variables of a launcher are set,
    with ``environment`` on top. Each rank computes on one thread.

    Raises:
        RankFailure: with the tracebacks of the ranks that raised, or the numbers of those that died or were silent
            for ``timeout_seconds``. All processes have been ended by then.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed", "numpy"])
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        pipes: list[Connection] = []
        processes = []
        try:
            for rank in range(world_size):
                ours, theirs = context.Pipe(duplex=False)
                variables = {**os.environ, **_rank_variables(rank, world_size), **(environment or {})}
                call = (
                    rank,
                    world_size,
                    str(Path(folder) / "store"),
                    variables,
                    timeout_seconds,
                    theirs,
                    function,
                    args,
                )
                process = context.Process(target=_rank_main, args=call, daemon=False)
                process.start()
                theirs.close()
                pipes.append(ours)
                processes.append(process)
            return _collect(pipes, timeout_seconds)
        finally:
            for process in processes:
                process.join(timeout=0.2 if process.is_alive() else None)
                if process.is_alive():
                    process.kill()
                    process.join()
            for pipe in pipes:
                pipe.close()


def subgroups(sizes: Sequence[int]) -> dict[int, dist.ProcessGroup | None]:
    """A group of ranks 0 … size − 1 for each size; None on ranks outside it. Every rank must call this."""
    groups: dict[int, dist.ProcessGroup | None] = {}
    for size in sizes:
        group = dist.new_group(list(range(size)), timeout=datetime.timedelta(seconds=60))
        groups[size] = group if dist.get_rank() < size else None
    return groups


def _rank_variables(rank: int, world_size: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "OMP_NUM_THREADS": "1",
    }


def _rank_main(
    rank: int,
    world_size: int,
    store_file: str,
    variables: dict[str, str],
    timeout_seconds: float,
    pipe: Connection,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    os.environ.clear()
    os.environ.update(variables)
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(max(timeout_seconds - 1.0, 0.5), exit=False)  # shows where a rank hangs
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store_file}",
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=timeout_seconds),
        )
        outcome = (True, function(*args))
        message = pickle.dumps(outcome)  # by value: shared-memory handles would die with this process
    except BaseException:  # noqa: BLE001 - whatever it is, SystemExit and pytest's outcomes too, the parent must show it
        message = pickle.dumps((False, traceback.format_exc()))
    pipe.send_bytes(message)
    pipe.close()
    faulthandler.cancel_dump_traceback_later()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # without destroy_process_group: a rank must not wait for one that has failed


def _collect(pipes: list[Connection], timeout_seconds: float) -> list[Any]:
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    waiting = {pipe: rank for rank, pipe in enumerate(pipes)}
    deadline = time.monotonic() + timeout_seconds
    while waiting:
        ready = wait(list(waiting), timeout=max(deadline - time.monotonic(), 0.0))
        if not ready:
            break
        for pipe in ready:
            rank = waiting.pop(pipe)
            try:
                succeeded, value = pickle.loads(pipe.recv_bytes())
            except EOFError:
                succeeded, value = False, "the process ended without an answer (killed, or a crash in native code)"
            if succeeded:
                results[rank] = value
            else:
                failures[rank] = value
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    if not failures and not waiting:
        return [results[rank] for rank in range(len(pipes))]
    lines = [f"rank {rank}:\n{text}" for rank, text in sorted(failures.items())]
    if waiting:
        silent = ", ".join(str(rank) for rank in sorted(waiting.values()))
        why = "another rank's failure" if failures else f"{timeout_seconds:g} s"
        lines.append(f"rank {silent}: no result after {why}; the process was ended")
    raise RankFailure("\n".join(lines))
