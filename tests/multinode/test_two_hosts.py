"""Across two hosts: the preflight finds the line to fix; a lost process ends the run everywhere; a resume goes on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.tracking.local_log import read_entries
from tests.multinode.conftest import PROJECT, tiny_settings
from tests.multinode.hosts import TwoHosts, end

pytestmark = pytest.mark.network_namespaces
RUN_SECONDS = 300  # outer limit of one launch on a busy machine; an idle one needs 20
TIMEOUT_SECONDS = 20.0
END_SECONDS = 3 * TIMEOUT_SECONDS + 30  # from a fault to the end of every process


class Launch:
    """Stage 1 on both hosts by ``deepspeed --hostfile``; a context manager that leaves no process."""

    def __init__(self, hosts: TwoHosts, data: Path, run: Path, max_steps: int) -> None:
        self.hosts, self.run, self.log = hosts, run, run.parent / "launch.log"
        launcher = ["deepspeed", "--hostfile", str(hosts.hostfile), "--launcher", "pdsh", "--no_python"]
        script = [str(PROJECT / "launch" / "stage1.sh"), *tiny_settings(data, run, max_steps, TIMEOUT_SECONDS)]
        self.process = hosts.start("nodeA", launcher + script, PROJECT, self.log)

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, *error: object) -> None:
        end(self.process)
        for host in ("nodeA", "nodeB"):
            for process in self.hosts.processes(host):
                process.kill()

    def wait_for_checkpoint(self) -> None:
        deadline = time.monotonic() + RUN_SECONDS
        while not list((self.run / "checkpoints").glob("step-*[0-9]")):
            assert self.process.poll() is None and time.monotonic() < deadline, self.text()
            time.sleep(0.05)

    def rank_process(self, host: str) -> psutil.Process:
        """The training process of a host: the eldest that runs the stage's script."""
        found = self.hosts.processes(host, "stages/stage1.py")
        return min(found, key=lambda process: process.create_time())

    def status(self, seconds: float) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the launch did not end within {seconds:.0f} s\n{self.text()}") from None

    def nothing_left(self) -> bool:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if not any(self.hosts.processes(host, "stage1") for host in ("nodeA", "nodeB")):
                return True
            time.sleep(0.2)
        return False

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


def test_the_preflight_measures_the_network_and_names_the_line_to_fix(two_hosts, data, tmp_path):
    command = [sys.executable, "-m", "pipeline.preflight", "--min-free-gigabytes", "0", "--run-folder", str(tmp_path)]
    command += ["--shards", str(data / "train"), "--megabytes", "4", "--json", str(tmp_path / "out.json")]
    good = two_hosts.run("nodeA", [*command, "--hostfile", str(two_hosts.hostfile)], PROJECT, RUN_SECONDS)
    assert good.returncode == 0 and "all is well" in good.stdout, good.stdout
    record = json.loads((tmp_path / "out.json").read_text())
    assert [host["report"]["host"] for host in record["hosts"]] == ["nodeA", "nodeB"]
    assert record["all_reduce"]["ranks"] == 2 and record["all_reduce"]["gigabytes_per_second"] > 0
    (tmp_path / "hostfile").write_text("nodeA slots=1\n# nodeC is switched off\nnodeC slots=1\n")
    bad = two_hosts.run("nodeA", [*command, "--hostfile", str(tmp_path / "hostfile")], PROJECT, RUN_SECONDS)
    assert bad.returncode == 1 and "line 3 (nodeC slots=1): ssh nodeC failed" in bad.stdout, bad.stdout


def test_a_killed_process_ends_both_hosts_and_a_resume_goes_on(two_hosts, data, tmp_path):
    run, max_steps = tmp_path / "runs" / "stage1", 14
    run.parent.mkdir()
    with Launch(two_hosts, data, run, max_steps) as launch:
        launch.wait_for_checkpoint()
        launch.rank_process("nodeB").send_signal(signal.SIGKILL)
        assert launch.status(END_SECONDS) != 0
        assert launch.nothing_left(), two_hosts.processes("nodeA") + two_hosts.processes("nodeB")
        assert "rank 1" in launch.text() and "ended without an error message at step" in launch.text(), launch.text()
    before = max(entry.step for entry in read_entries(run))
    assert before < max_steps
    with Launch(two_hosts, data, run, max_steps) as launch:
        assert launch.status(RUN_SECONDS) == 0, launch.text()
        assert "goes on from" in launch.text()
    assert [entry.step for entry in read_entries(run)] == list(range(1, max_steps + 1))
    assert (run / "final" / "model.safetensors").is_file()


@pytest.mark.long
@pytest.mark.parametrize("fault", ["stop nodeA", "stop nodeB", "cut the link"])
def test_a_stopped_process_or_a_cut_link_ends_both_hosts(two_hosts, data, tmp_path, fault):
    (tmp_path / "runs").mkdir()
    with Launch(two_hosts, data, tmp_path / "runs" / "stage1", 2000) as launch:
        launch.wait_for_checkpoint()
        try:
            if fault == "cut the link":
                two_hosts.set_link("down")
            else:
                launch.rank_process(fault.split()[1]).send_signal(signal.SIGSTOP)
            ranks = [launch.rank_process(host) for host in ("nodeA", "nodeB")]
            psutil.wait_procs(ranks, END_SECONDS)
            assert not any(rank.is_running() for rank in ranks), launch.text()
        finally:
            two_hosts.set_link("up")
        if fault != "cut the link":
            assert launch.status(END_SECONDS) != 0 and launch.nothing_left()
            assert f"rank {0 if fault.endswith('A') else 1}" in launch.text()
    shutil.rmtree(tmp_path / "runs")
