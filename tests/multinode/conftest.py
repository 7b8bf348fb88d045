"""Two hosts and tiny data, made once for the tests that share them."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.multinode.hosts import TwoHosts, require_packages

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory) -> Iterator[TwoHosts]:
    """nodeA and nodeB, reachable from each other by ssh; everything in them ends with the module."""
    require_packages()
    with TwoHosts(tmp_path_factory.mktemp("hosts") / "hosts") as hosts:
        yield hosts


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Tiny scenes in train/ and a tokenizer."""
    folder = tmp_path_factory.mktemp("data")
    for command in (
        ["scenes", "--out", str(folder), "--train-images", "64", "--test-images", "8"],
        ["tokenizer", "--shards", str(folder / "train"), "--out", str(folder / "tokenizer"), "--vocab-size", "400"],
    ):
        subprocess.run([sys.executable, "-m", "data_tools", *command], cwd=PROJECT, check=True, capture_output=True)
    return folder


def tiny_settings(data: Path, run: Path, max_steps: int, timeout_seconds: float) -> list[str]:
    """Overrides for a stage 1 that takes a fraction of a second a step and logs each."""
    settings = {
        "model.preset": "tiny",
        "model.gradient_checkpointing": "false",
        "data.shards": f"[{data / 'train'}]",
        "data.patch_budgets": "[128]",
        "data.num_workers": "1",
        "tokenizer.path": str(data / "tokenizer"),
        "train.run_folder": str(run),
        "train.max_steps": str(max_steps),
        "train.global_batch_size": "4",
        "train.precision": "fp32",
        "train.log_every_steps": "1",
        "train.checkpoint_every_steps": "2",
        "train.timeout_seconds": str(timeout_seconds),
    }
    return [f"{name}={value}" for name, value in settings.items()]


@pytest.fixture
def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
