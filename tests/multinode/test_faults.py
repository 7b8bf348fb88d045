"""A fault in one rank of a real stage 1 under DeepSpeed's launcher: it is named, all end, and no process stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.multinode.conftest import PROJECT, tiny_settings
from tests.multinode.hosts import end

TIMEOUT_SECONDS = 20.0
START_SECONDS = 300  # on a busy machine; an idle one needs 20
END_SECONDS = 3 * TIMEOUT_SECONDS + 30
SCRIPT = Path(__file__).with_name("faulty_stage1.py")


def start(data: Path, run: Path, fault: str, port: int) -> subprocess.Popen:
    """Two ranks on this machine; the log is beside the run folder."""
    run.parent.mkdir(parents=True)
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", str(port)]
    with open(run.parent / "launch.log", "wb") as log:
        return subprocess.Popen(
            [*launcher, str(SCRIPT), *tiny_settings(data, run, 2000, TIMEOUT_SECONDS)],
            cwd=PROJECT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "FAULT": fault, "OMP_NUM_THREADS": "1"},
        )


def family(process: subprocess.Popen) -> list[psutil.Process]:
    """Every process that the launch started, workers and watchdogs included."""
    return psutil.Process(process.pid).children(recursive=True)


def rank_process(process: subprocess.Popen, rank: int) -> psutil.Process:
    """The training process of a rank: the eldest with that RANK that runs the script."""
    found = [
        p for p in family(process) if p.environ().get("RANK") == str(rank) and str(SCRIPT) in " ".join(p.cmdline())
    ]
    return min(found, key=lambda p: p.create_time())


def wait_for_step(process: subprocess.Popen, run: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not list((run / "checkpoints").glob("step-*[0-9]")):
        assert process.poll() is None and time.monotonic() < deadline, (run.parent / "launch.log").read_text()
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        pytest.param("stop", "rank 1", id="stop", marks=pytest.mark.long),
        pytest.param("kill", "rank 1", id="kill", marks=pytest.mark.long),
        pytest.param("loader", "读取 loader broke", id="loader", marks=pytest.mark.long),
        pytest.param("forward", "前向 forward broke", id="forward", marks=pytest.mark.long),
        pytest.param("tracker", "记录 tracker broke", id="tracker", marks=pytest.mark.long),
    ],
)
def test_a_fault_in_one_rank_is_named_and_leaves_no_process(data, tmp_path, fault, words, free_port):
    run = tmp_path / "runs" / "stage1"
    process = start(data, run, fault, free_port)
    members: list[psutil.Process] = []
    try:
        if fault in ("stop", "kill"):
            wait_for_step(process, run)
            members = family(process)
            rank_process(process, 1).send_signal(signal.SIGSTOP if fault == "stop" else signal.SIGKILL)
            status = process.wait(END_SECONDS)
        else:
            status = process.wait(START_SECONDS)
        text = (run.parent / "launch.log").read_text(encoding="utf-8", errors="replace")
        assert status != 0
        told = [line for line in text.splitlines() if "heartbeat:" in line]
        assert any(words in line and "phase" in line and "step" in line for line in told), text[-6000:]
        _, alive = psutil.wait_procs(members, timeout=15)
        assert not alive
    finally:
        for member in members:
            if member.is_running():
                member.kill()
        if process.poll() is None:
            end(process)
