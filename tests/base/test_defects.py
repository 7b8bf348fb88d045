"""A traceback is followed by a request to report it; Ctrl-C is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("error", "asked"), [("KeyError('名')", 1), ("KeyboardInterrupt", 0)])
def test_only_a_traceback_of_a_defect_asks_for_a_report(error, asked):
    code = f"from pipeline.base.defects import ask_for_reports as a\na()\na()\nraise {error}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode != 0 and "Traceback" in done.stderr
    assert done.stderr.count("Please report it") == asked
