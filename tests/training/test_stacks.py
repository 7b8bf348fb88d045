"""A hang leaves the stacks of every rank, also of one that hangs in C code with Python's lock."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from tests.end_to_end.runs import ROOT

# Two ranks whose heartbeats share a store. Rank 1 hangs: in C code that holds the lock, or in Python.
PROGRAM = """
import ctypes, datetime, sys, time
import torch.distributed as dist
from pipeline.training.heartbeat import Heartbeat
from pipeline.training.stacks import Stacks
rank, how, folder, port = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
limit = datetime.timedelta(seconds=30)
store = dist.TCPStore("127.0.0.1", port, None, rank == 0, timeout=limit, wait_for_workers=False)
stacks = Stacks(folder, rank)
with stacks, Heartbeat(rank, 2, 4.0, store=store, stacks=stacks) as heartbeat:
    def hang_here():
        if how == "c":
            ctypes.PyDLL(None).sleep(300)  # PyDLL keeps Python's lock
        time.sleep(300)
    for step in range(10**6):
        heartbeat.beat(step, "forward")
        if rank == 1 and step == 3:
            hang_here()
        time.sleep(0.2 if rank == 1 or step < 3 else 300)
"""


def run_and_read(tmp_path: Path, how: str) -> list[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-c", PROGRAM]
    ranks = [
        subprocess.Popen([*command, str(rank), how, str(tmp_path), str(port)], cwd=ROOT, stderr=subprocess.PIPE)
        for rank in (0, 1)
    ]
    try:
        for rank in ranks:
            rank.communicate(timeout=120)
    finally:
        for rank in ranks:
            rank.kill()
    return [(tmp_path / "stacks" / f"rank-0000{rank}.txt").read_text(encoding="utf-8") for rank in (0, 1)]


def test_a_rank_that_hangs_in_c_code_leaves_its_stacks_and_the_others_theirs(tmp_path: Path):
    first, second = run_and_read(tmp_path / "运行", "c")
    assert "hang_here" in second
    assert "rank 0 at step" in first and "Thread 0x" in first


def test_a_rank_that_hangs_in_python_leaves_its_stacks_too(tmp_path: Path):
    first, second = run_and_read(tmp_path, "python")
    assert "hang_here" in second and "rank 1 at step 3, phase forward" in second
    assert "rank 0 at step" in first
