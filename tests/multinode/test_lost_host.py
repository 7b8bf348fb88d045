"""A host is lost under the supervisor: the run goes on by itself on the one that is left, and ends complete."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from pipeline.checkpoint.folder import list_checkpoints
from tests.end_to_end.runs import curves
from tests.multinode.conftest import PROJECT, tiny_settings
from tests.multinode.hosts import TwoHosts, end

pytestmark = [pytest.mark.network_namespaces, pytest.mark.long, pytest.mark.timeout(1500)]
STEPS = 60
LIMIT_SECONDS = 900


def test_a_lost_host_leaves_a_run_that_ends_on_the_other(two_hosts: TwoHosts, data: Path, tmp_path: Path):
    run, log = tmp_path / "runs" / "stage1", tmp_path / "log"
    words = [sys.executable, "-m", "pipeline.supervise", "run", "stage1", "--hostfile", str(two_hosts.hostfile)]
    words += ["--first-pause-seconds", "1", *tiny_settings(data, run, STEPS, 20.0)]
    process = two_hosts.start("nodeA", words, PROJECT, log)
    try:
        deadline = time.monotonic() + LIMIT_SECONDS
        while not list_checkpoints(run):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-6000:]
            time.sleep(0.05)
        two_hosts.set_link("down")
        for member in two_hosts.processes("nodeB"):
            member.kill()
        status = process.wait(LIMIT_SECONDS)
    finally:
        end(process)
        for member in two_hosts.processes("nodeA"):
            member.kill()
    text = log.read_text(errors="replace")
    assert status == 0, text[-6000:]
    assert "nodeB does not answer" in text and "on 1 of 2 hosts: nodeA" in text
    assert sorted(curves(run, "loss")["loss"]) == list(range(1, STEPS + 1))
