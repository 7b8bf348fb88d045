"""Names that one process holds at a time, also where the waits of its threads cross those of another process."""

from __future__ import annotations

import multiprocessing
import threading
from multiprocessing.synchronize import Barrier
from pathlib import Path

from pipeline.data.locks import NamedLocks


def _hold_one_and_ask_for_another(path: Path, held: str, wanted: str, begun: Barrier) -> None:
    """One thread holds a name until another has waited for the other process's for a while."""
    locks, asked, failed = NamedLocks(path), threading.Event(), []

    def hold() -> None:
        with locks.hold(held):
            begun.wait(60)
            asked.wait(60)
            threading.Event().wait(0.5)

    def ask() -> None:
        begun.wait(60)
        asked.set()
        try:
            with locks.hold(wanted):
                pass
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=one) for one in (hold, ask)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    raise SystemExit(1 if failed or any(thread.is_alive() for thread in threads) else 0)


def test_waits_that_cross_between_processes_are_no_deadlock(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    begun = context.Barrier(4)
    names = [("甲", "乙"), ("乙", "甲")]
    processes = [
        context.Process(target=_hold_one_and_ask_for_another, args=(tmp_path / "locks", *pair, begun)) for pair in names
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
