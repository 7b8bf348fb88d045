"""The same runs on a real Ray cluster of several nodes on this machine, one of them killed in mid-job."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter

import pytest

from data_tools.execution.jobs import InProcess
from data_tools.execution.ray_executor import RayExecutor
from data_tools.execution.steps import run_step
from tests.data_tools.step_samples import Shout, contents, write_shards

ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")


@pytest.fixture
def cluster(monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.getcwd())  # the workers import these tests' steps
    small = {"object_store_memory": 80 * 1024 * 1024, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **small})
    try:
        cluster.other = cluster.add_node(num_cpus=1, object_store_memory=80 * 1024 * 1024)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.long
def test_a_node_killed_in_mid_job_changes_nothing(cluster, tmp_path, capfd):
    shards, asked = write_shards(tmp_path / "in", 6), tmp_path / "asked"
    run_step(Shout(tmp_path / "asked0"), shards, tmp_path / "reference", executor=InProcess(), index=False)

    def kill_a_node_in_mid_job():
        until = time.monotonic() + 60
        while (not asked.exists() or len(asked.read_text().split()) < 6) and time.monotonic() < until:
            time.sleep(0.02)
        cluster.remove_node(cluster.other, allow_graceful=False)

    killer = threading.Thread(target=kill_a_node_in_mid_job)
    killer.start()
    executor = RayExecutor(address=cluster.address)
    summary = run_step(Shout(asked, pause_seconds=0.3), shards, tmp_path / "out", executor=executor, index=False)
    killer.join()
    assert summary.ok, list(summary.lines())
    assert "another takes over" in capfd.readouterr().err, "the node was to die in mid-job"
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")
    counts = Counter(asked.read_text().split())
    # The kill can fall between an answer and its note: then one answer is asked for twice.
    assert len(counts) == 36 and sum(counts.values()) <= 37
