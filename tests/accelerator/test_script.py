"""``bash benchmarks/accelerator.sh --dry-run`` runs every command of the real one, with small sizes on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = (
    "stage1-256",
    "stage2-256",
    "step-1024",
    "step-256-compiled",
    "stage1-1024-recomputed",
    "zero-memory",
    "curves",
)


@pytest.mark.long
def test_every_part_ends_with_0_and_leaves_rows(tmp_path: Path):
    done = subprocess.run(
        ["bash", "benchmarks/accelerator.sh", "--dry-run", str(tmp_path / "结果")],
        cwd=ROOT, env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    for name in FILES:
        rows = json.loads((tmp_path / "结果" / f"{name}.json").read_text(encoding="utf-8"))
        assert rows and set(rows[0]) == {"name", "value", "unit", "baseline", "ratio"}, name
    assert len(list((tmp_path / "结果").glob("trace-*.json"))) == 2
    assert "status" in (tmp_path / "结果" / "summary.txt").read_text(encoding="utf-8")


def test_a_machine_without_a_device_is_told_so(tmp_path: Path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    done = subprocess.run(
        ["bash", "benchmarks/accelerator.sh", str(tmp_path)],
        cwd=ROOT, env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "sees no CUDA device" in done.stderr and "--dry-run" in done.stderr
