"""Runs of the stage scripts as a user starts them, on a few small scenes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from pipeline.checkpoint.folder import OBJECTIVE
from pipeline.checkpoint.tensors import read_tensors
from pipeline.tracking.local_log import read_entries
from pipeline.tracking.metric_names import grouped_name

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 240
SMALL = ("model.preset=tiny", "model.gradient_checkpointing=false", "data.patch_budgets=[48,64,80]",
         "data.num_workers=1", "train.global_batch_size=8", "train.precision=fp32", "train.log_every_steps=1",
         "train.timeout_seconds=60",
         "optimizer.peak_learning_rate=1e-3", "optimizer.warmup_steps=2", "optimizer.group_factors.scales=5",
         "train.checkpoint_every_steps=3")  # fmt: skip


@dataclass
class Material:
    """Shards and tokenizer that all runs of a session share."""

    folder: Path

    def make(self) -> None:
        """Draw the scenes and train the tokenizer with the project's own commands, where they are not there yet."""
        if (self.folder / "tokenizer" / "tokenizer.model").is_file():
            return
        for words in (
            ("-m", "data_tools", "scenes", "--out", self.folder / "scenes", "--train-images", 160, "--test-images", 40),
            ("-m", "data_tools", "tokenizer", "--shards", self.train, "--out", self.folder / "tokenizer",
             "--vocab-size", 400),
        ):  # fmt: skip
            done = python(*words)
            assert done.returncode == 0, done.stderr

    @property
    def train(self) -> Path:
        return self.folder / "scenes" / "train"

    @property
    def test(self) -> Path:
        return self.folder / "scenes" / "test"

    def settings(self, run: Path, *further: str) -> list[str]:
        return [*SMALL, f"train.run_folder={run}", f"data.shards=[{self.train}]",
                f"tokenizer.path={self.folder / 'tokenizer'}", *further]  # fmt: skip


def python(*words: object, limit_seconds: float = LIMIT_SECONDS) -> subprocess.CompletedProcess[str]:
    """A command of this project, to its end."""
    return subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True,
                          timeout=limit_seconds, env=environment(), encoding="utf-8")  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **more}


class StageRun:
    """A stage by launch/stage.sh in a session of its own, so that nothing of it can outlive the test."""

    def __init__(self, stage: str, settings: list[str], processes: int, log: Path) -> None:
        self.log = log
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                ["bash", "launch/stage.sh", stage, *settings], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
                env=environment(PROCESSES=str(processes)), start_new_session=True,
            )  # fmt: skip

    def wait(self, limit_seconds: float = LIMIT_SECONDS) -> int:
        try:
            return self.process.wait(limit_seconds)
        finally:
            self.kill()

    def wait_for_step(self, run: Path, step: int, limit_seconds: float = LIMIT_SECONDS) -> None:
        """Until ``step`` is logged."""
        end = time.monotonic() + limit_seconds
        while time.monotonic() < end and self.process.poll() is None:
            if (run / "metrics.jsonl").is_file() and any(entry.step >= step for entry in read_entries(run)):
                return
            time.sleep(0.05)
        raise AssertionError(f"step {step} was not reached:\n{self.text()[-3000:]}")

    def ranks(self) -> list[int]:
        """Process ids of the ranks."""
        found = []
        for member in self.members():
            with contextlib.suppress(psutil.NoSuchProcess):
                command = " ".join(psutil.Process(member).cmdline())
                others = ("deepspeed", "multiprocessing", "watchdog", "bash", "one_host")
                if "stages/stage" in command and not any(word in command for word in others):
                    found.append(member)
        return found

    def members(self) -> list[int]:
        """Process ids of all that is of the session: launcher, ranks, loader workers."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                if os.getsid(process.pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
        return sorted(found)

    def kill(self) -> None:
        """Kill -9 everything of the session."""
        for pid in self.members():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(30)

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


def run_stage(stage: str, settings: list[str], processes: int, log: Path) -> None:
    """To its end, which must be a good one."""
    running = StageRun(stage, settings, processes, log)
    status = running.wait()
    assert status == 0, running.text()[-4000:]
    assert f" on {processes} process(es)" in running.text()


def curves(run: Path, *names: str) -> dict[str, dict[int, float]]:
    """Logged values by the loop's own names and by step; a step that is there twice fails, an empty curve too."""
    found: dict[str, dict[int, float]] = {name: {} for name in names}
    for entry in read_entries(run):
        for name in names:
            value = entry.values.get(grouped_name(name))
            if value is not None:
                assert entry.step not in found[name], f"step {entry.step} of {name} is there twice"
                found[name][entry.step] = value
    assert all(found.values()), f"{run} has no curve of {[name for name, curve in found.items() if not curve]}"
    return found


def checkpoint_tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Weights, moments and the objectives' state of a checkpoint."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    tensors = load_file(folder / OBJECTIVE)
    for kind in ("weight", "exp_avg", "exp_avg_sq"):
        tensors.update({f"{kind}/{name}": tensor for name, tensor in read_tensors(folder, kind)})
    return tensors
