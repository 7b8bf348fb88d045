"""Signals: the first is a request, a second Ctrl-C is obeyed at once; and Ctrl-C to a run of several ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.checkpoint.folder import list_checkpoints
from pipeline.training.signals import STOP_SIGNALS, StopRequest
from tests.end_to_end.runs import ROOT, Material, StageRun, curves, run_stage

TWICE = """
import os, signal, sys
from pipeline.training.signals import StopRequest
with StopRequest() as stop:
    for number in map(int, sys.argv[1:]):
        os.kill(os.getpid(), number)
        print("received", int(stop.received), flush=True)
"""


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_remembered_and_the_handlers_come_back(number: int):
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    with StopRequest() as stop:
        assert stop.received == 0
        os.kill(os.getpid(), number)
        assert stop.received == number
    assert before == {number: signal.getsignal(number) for number in STOP_SIGNALS}


@pytest.mark.parametrize(
    ("sent", "status", "printed"),
    [
        ((signal.SIGINT, signal.SIGINT), 130, ["received 2"]),  # nothing after the second
        # Launchers answer a Ctrl-C with SIGTERM to their ranks: that is not the user's second Ctrl-C.
        ((signal.SIGINT, signal.SIGTERM), 0, ["received 2", "received 2"]),
        ((signal.SIGUSR1, signal.SIGTERM), 0, ["received 10", "received 10"]),
    ],
)
def test_only_a_second_ctrl_c_ends_at_once(sent: tuple[int, ...], status: int, printed: list[str]):
    done = subprocess.run(
        [sys.executable, "-c", TWICE, *(str(int(number)) for number in sent)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == status, done.stderr
    assert done.stdout.splitlines() == printed


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.long)])
def test_ctrl_c_under_the_launcher_leaves_nothing_running_and_a_run_that_goes_on(
    material: Material, tmp_path: Path, times: int
):
    """Once: a checkpoint of the step in hand. Twice: the end, and what is there is whole."""
    run, steps = tmp_path / "run", 30
    settings = material.settings(run, f"train.max_steps={steps}", "train.checkpoint_every_steps=1000")
    running = StageRun("stage1", settings, 2, tmp_path / "log")
    running.wait_for_step(run, 3)
    for _ in range(times):
        os.killpg(running.process.pid, signal.SIGINT)  # as the terminal does: launcher, ranks and loaders alike
        time.sleep(0.05)
    try:
        assert running.process.wait(120) == 130
        end = time.monotonic() + 60
        while running.members() and time.monotonic() < end:
            time.sleep(0.2)
        assert running.members() == []
    finally:
        running.kill()
    if times == 1:
        (checkpoint,) = list_checkpoints(run)
        reached = int(checkpoint.name.removeprefix("step-"))
        assert 3 <= reached < steps
        assert f"Ctrl-C: saved step {reached} of {steps}; the same command goes on" in running.text()
        assert "Traceback" not in running.text()
    run_stage("stage1", settings, 2, tmp_path / "log")
    assert sorted(curves(run, "loss")["loss"]) == list(range(1, steps + 1))
