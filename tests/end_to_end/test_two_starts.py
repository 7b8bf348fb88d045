"""Two starts into one run folder: the second is refused, and the first goes on."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pipeline.supervise.attempts import FOLDER_TAKEN
from tests.end_to_end.runs import Material, StageRun


@pytest.mark.long
def test_the_second_start_is_refused_and_told_the_firsts_host_and_process(material: Material, tmp_path: Path):
    run = tmp_path / "运行"
    # without loader workers, whose command line is that of their rank
    settings = material.settings(run, "train.max_steps=100000", "data.num_workers=0")
    first = StageRun("stage1", settings, 1, tmp_path / "first.log")
    try:
        first.wait_for_step(run, 1)
        (process,) = first.ranks()
        second = StageRun("stage1", settings, 2, tmp_path / "second.log")
        status, text = second.wait(), second.text()
        assert status == FOLDER_TAKEN, text[-3000:]
        refusals = [line for line in text.splitlines() if line.startswith("error: rank")]
        told = f"is in use by process {process} on host {socket.gethostname()!r}"
        assert refusals and all(told in line and "train.run_folder" in line for line in refusals)
        assert "Traceback" not in text
        assert first.process.poll() is None and first.ranks() == [process]
    finally:
        first.kill()
