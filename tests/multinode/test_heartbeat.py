"""A rank that dies, stops, hangs or fails ends every other rank within the time-out, and its name is in the message."""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pipeline.training.heartbeat import EXIT_STATUS, Heartbeat

TIMEOUT_SECONDS = 3.0
LIMIT_SECONDS = 40.0  # for a whole case on a busy machine; the cases measure their own time from the fault on
FAULT_STEP = 5
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["torch", "torch.distributed"])


@dataclass
class Outcome:
    """Exit status and stderr of each rank, and the seconds from the fault until all had ended."""

    statuses: list[int | None]
    texts: list[str]
    seconds: float


def rank_main(rank: int, world_size: int, folder: str, fault: str, culprit: int) -> None:
    """A training-like loop in which ``culprit`` has ``fault`` at step 5."""
    log = os.open(f"{folder}/stderr-{rank}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 2)
    faulthandler.disable()
    torch.set_num_threads(1)
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world_size)
    flushed = Path(folder) / f"flushed-{rank}"
    with Heartbeat(rank, world_size, TIMEOUT_SECONDS, on_failure=flushed.write_text) as heartbeat:
        for step in range(1, 16):
            heartbeat.beat(step, "loader")
            if step == FAULT_STEP and rank == culprit:
                time.sleep(1.5)  # others know a place once it was exchanged
                (Path(folder) / "fault").write_text(str(time.time()))
                have_fault(fault)
            heartbeat.beat(step, "all-reduce")
            dist.all_reduce(torch.ones(8))
            time.sleep(0.02)
    dist.destroy_process_group()


def have_fault(fault: str) -> None:
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "exception":
        raise ValueError("坏的批次 bad batch")
    if fault == "hanging":
        time.sleep(1000)
    if fault == "hanging with Python's lock":
        ctypes.PyDLL(None).sleep(1000)


def run_case(folder: Path, fault: str, culprit: int, world_size: int) -> Outcome:
    processes = [
        context.Process(target=rank_main, args=(rank, world_size, str(folder), fault, culprit))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + LIMIT_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    ended = time.time()
    statuses = [process.exitcode for process in processes]
    for process in processes:
        if process.exitcode is None:
            process.kill()
            process.join()
    texts = [(folder / f"stderr-{rank}").read_text(encoding="utf-8") for rank in range(world_size)]
    began = folder / "fault"
    return Outcome(statuses, texts, ended - float(began.read_text()) if began.exists() else 0.0)


CASES = {
    "finish": ("none", 0, 3),
    "alone": ("hanging", 0, 1),
    "killed": ("killed", 1, 2),
    "rank 0 killed": ("killed", 0, 2),
    "stopped": ("stopped", 2, 3),
    "rank 0 stopped": ("stopped", 0, 2),
    "exception": ("exception", 1, 3),
    "rank 0 exception": ("exception", 0, 2),
    "hanging": ("hanging", 2, 3),
    "lock": ("hanging with Python's lock", 1, 2),
}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> Callable[[str], Outcome]:
    """The outcome of a case; they all wait for time-outs, so they run at the same time."""
    with ThreadPoolExecutor(len(CASES)) as pool:
        running: dict[str, Future] = {
            name: pool.submit(run_case, tmp_path_factory.mktemp("case"), *case) for name, case in CASES.items()
        }
        yield lambda name: running[name].result()


def assert_named(outcome: Outcome, rank: int, text: str, survivors: list[int]) -> None:
    assert outcome.seconds < 3 * TIMEOUT_SECONDS + 10
    for survivor in survivors:
        assert outcome.statuses[survivor] not in (0, None)
    told = [outcome.texts[survivor] for survivor in survivors if "heartbeat:" in outcome.texts[survivor]]
    assert any(f"rank {rank}" in t and text in t and f"step {FAULT_STEP}, phase loader" in t for t in told), outcome


def test_ranks_that_finish_leave_quietly(outcome):
    assert outcome("finish").statuses == [0, 0, 0]
    assert not any("heartbeat:" in text for text in outcome("finish").texts)


def test_a_run_of_one_rank_notices_that_it_stands_still(outcome):
    assert outcome("alone").statuses == [EXIT_STATUS]
    assert "rank 0 stuck" in outcome("alone").texts[0] and "step 5, phase loader" in outcome("alone").texts[0]


@pytest.mark.parametrize("name", ["killed", "rank 0 killed"])
def test_a_killed_rank_ends_the_others(outcome, name):
    culprit = CASES[name][1]
    assert_named(outcome(name), culprit, "silent", [1 - culprit])
    assert outcome(name).statuses[culprit] == -signal.SIGKILL
    assert "ended without an error message at step 5, phase loader" in outcome(name).texts[culprit]


def test_a_stopped_rank_is_named_and_killed(outcome):
    assert_named(outcome("stopped"), 2, "silent", [0, 1])
    assert outcome("stopped").statuses == [EXIT_STATUS, EXIT_STATUS, -signal.SIGKILL]
    assert "was killed at step 5, phase loader" in outcome("stopped").texts[2]


def test_rank_0_stopped_with_the_store_is_named_and_killed(outcome):
    assert_named(outcome("rank 0 stopped"), 0, "silent", [1])
    assert outcome("rank 0 stopped").statuses == [-signal.SIGKILL, EXIT_STATUS]


def test_an_exception_is_told_to_every_rank(outcome):
    result = outcome("exception")
    assert_named(result, 1, "ValueError: 坏的批次 bad batch", [0, 2])
    assert result.statuses[1] == 1 and "Traceback" in result.texts[1]


def test_an_exception_of_rank_0_is_told_to_every_rank(outcome):
    result = outcome("rank 0 exception")
    assert_named(result, 0, "ValueError", [1])
    assert result.statuses[0] == 1


def test_the_rank_that_hangs_is_named_not_those_that_wait_for_it(outcome):
    assert_named(outcome("hanging"), 2, "stuck", [0, 1])
    assert outcome("hanging").statuses[2] == EXIT_STATUS


def test_a_rank_that_hangs_with_pythons_lock_is_killed_by_its_watchdog(outcome):
    assert_named(outcome("lock"), 1, "silent", [0])
    assert outcome("lock").statuses == [EXIT_STATUS, -signal.SIGKILL]


def test_a_phase_may_be_given_more_time(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with Heartbeat(0, 1, 0.2) as heartbeat:
        heartbeat.beat(1, "evaluation", allowed_seconds=60)
        time.sleep(0.8)
        assert not ended
        heartbeat.beat(1, "step")
        time.sleep(0.8)
    assert ended and ended[0] == EXIT_STATUS


def test_a_wait_with_a_limit_of_its_own_is_shown_and_is_no_standstill(monkeypatch):
    """A loader that waits for its store, for longer than a phase may last, ends nothing; the same phase alone does."""
    ended, waits, clock = [], ["waits for store.example, try 3, 42 s"], threading.Event()
    monkeypatch.setattr(os, "_exit", ended.append)
    with Heartbeat(0, 1, 0.2, waits_for=lambda: waits[0] if waits else None) as heartbeat:
        heartbeat.beat(7, "data")
        clock.wait(0.8)
        assert not ended
        report = heartbeat._seen[0].record
        assert report.location().startswith("step 7, phase data (waits for store.example, try 3, 42 s) (host ")
        waits.clear()
        clock.wait(0.8)
    assert ended and ended[0] == EXIT_STATUS
