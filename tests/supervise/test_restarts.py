"""One command, and a fault on the way: the run is started again by itself and ends complete, every step once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.checkpoint.folder import list_checkpoints
from pipeline.supervise.attempts import AttemptLog, read_lines
from tests.end_to_end.runs import ROOT, Material, curves, environment
from tests.multinode.hosts import end

LIMIT_SECONDS = 400
STEPS = 12


def start(words: list[str], log: Path, **more: str) -> subprocess.Popen[bytes]:
    with open(log, "wb") as output:
        return subprocess.Popen(words, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=environment(**more))


def settings(material: Material, run: Path, *further: str) -> list[str]:
    return material.settings(
        run, f"train.max_steps={STEPS}", "train.checkpoint_every_steps=2", "tracking.enabled=false",
        "train.timeout_seconds=20", *further,
    )  # fmt: skip


def wait_for_checkpoint(run: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not list_checkpoints(run):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-4000:]
        time.sleep(0.02)


def rank_process(process: subprocess.Popen[bytes], rank: int) -> psutil.Process:
    children = psutil.Process(process.pid).children(recursive=True)
    found = [p for p in children if p.environ().get("RANK") == str(rank) and "stages/stage" in " ".join(p.cmdline())]
    return min(found, key=lambda p: p.create_time())


def is_complete(run: Path) -> bool:
    return sorted(curves(run, "loss")["loss"]) == list(range(1, STEPS + 1)) and (run / "final/config.json").is_file()


def test_a_killed_rank_costs_a_restart_and_no_step(material: Material, tmp_path: Path):
    run, log = tmp_path / "run", tmp_path / "log"
    words = [sys.executable, "-m", "pipeline.supervise", "run", "stage1", "--first-pause-seconds", "0.1"]
    process = start([*words, *settings(material, run)], log, PROCESSES="2")
    try:
        wait_for_checkpoint(run, process, log)
        rank_process(process, 1).send_signal(signal.SIGKILL)
        status = process.wait(LIMIT_SECONDS)
    finally:
        if process.poll() is None:
            end(process)
    text = log.read_text(errors="replace")
    assert status == 0, text[-4000:]
    assert "supervise: it failed with status" in text and "goes on from" in text
    assert is_complete(run)
    assert [next(iter(line)) for line in read_lines(run) if "verdict" not in line] == [
        "start",
        "failed",
        "start",
        "end",
    ]


@pytest.mark.long
def test_a_rank_that_raises_costs_a_restart_under_torchrun(material: Material, tmp_path: Path):
    run, log, marker = tmp_path / "run", tmp_path / "log", tmp_path / "once"
    faulty = tmp_path / "python"  # stage 1 with a fault in it, started by the script that a user starts
    script = ROOT / "tests" / "multinode" / "faulty_stage1.py"
    faulty.write_text(f'#!/bin/bash\nexec "{sys.executable}" "${{@/*stages\\/stage1.py/{script}}}"\n')
    faulty.chmod(0o755)
    more = {"FAULT": "forward", "FAULT_ONCE": str(marker), "PYTHON": str(faulty), "PROCESSES": "2", "MAX_RESTARTS": "2"}
    process = start(["bash", "launch/torchrun.sh", "stage1", *settings(material, run)], log, **more)
    try:
        status = process.wait(LIMIT_SECONDS)
    finally:
        if process.poll() is None:
            end(process)
    text = log.read_text(errors="replace")
    assert status == 0, text[-4000:]
    assert "前向 forward broke" in text and "restarted; waiting" in text and marker.exists()
    assert is_complete(run)


def test_a_run_that_fails_at_one_step_each_time_is_given_up(material: Material, tmp_path: Path):
    """A launcher's restart refuses by itself, before a model is made."""
    run = tmp_path / "run"
    for _ in range(2):
        log = AttemptLog(run)
        log.at_step(7)
        log.failed()
    words = [sys.executable, "stages/stage1.py", *settings(material, run)]
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS,
        env={**environment(), "SUPERVISE_RESTART_COUNT": "2"},
    )  # fmt: skip
    assert done.returncode == 2 and "failed at step 7 twice" in done.stderr, done.stderr
    assert not os.path.exists(run / "checkpoints")
