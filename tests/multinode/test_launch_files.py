"""The files that other launchers start: they pass on what they are given and act on how it ended."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pipeline.preflight.hostfile import launcher_environment, read_hostfile

PROJECT = Path(__file__).resolve().parents[2]
SRUN = """#!/bin/bash
echo "srun $MASTER_ADDR:$MASTER_PORT $*" >> "$RECORD"
case "$*" in *preflight*) exit "${PREFLIGHT_STATUS:-0}" ;; *) exit "${STAGE_STATUS:-0}" ;; esac
"""
PYTHON = """#!/bin/bash
echo "$@" >> "$RECORD"
case "$*" in *supervise*) printf '%s' "${EXCLUDED:-}"; exit "${AFTER_STATUS:-0}" ;; esac
"""
SCONTROL = """#!/bin/bash
if [[ "$1" == show ]]; then printf 'node-7\\nnode-8\\n'; else echo "scontrol $*" >> "$RECORD"; fi
"""


@pytest.fixture
def tools(tmp_path) -> dict[str, str]:
    """Stand-ins for srun, scontrol and python that write down how they were called; the environment to use."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", PYTHON)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    names = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "PROCESSES", "PYTHON", "PREFLIGHT_ARGUMENTS",
             "RANK", "LOCAL_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name not in names}
    return environment | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "RECORD": str(tmp_path / "record"),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "node-[7-8]",
        "SLURM_SUBMIT_DIR": str(PROJECT),
        "PROCESSES": "4",
    }


def call(script: str, arguments: list[str], environment: dict[str, str]) -> tuple[int, list[str], str]:
    """(status, lines of the record, stderr)."""
    record = Path(environment["RECORD"])
    done = subprocess.run(
        ["bash", str(PROJECT / "launch" / script), *arguments], env=environment, capture_output=True, text=True
    )
    return done.returncode, record.read_text().splitlines() if record.exists() else [], done.stderr


def test_slurm_checks_first_and_asks_for_nothing_after_a_finished_run(tools):
    status, record, _ = call("slurm.sbatch", ["stage2", "train.seed=1"], tools)
    assert status == 0 and len(record) == 2
    assert "-m pipeline.preflight" in record[0] and record[0].startswith("srun node-7:24711 ")
    assert record[1].endswith("bash launch/stage2.sh train.seed=1")


@pytest.mark.parametrize("stage_status", ["138", "76", "137"])
def test_slurm_queues_a_failed_run_again_without_the_nodes_that_failed_twice(tools, stage_status):
    tools |= {"STAGE_STATUS": stage_status, "SLURM_RESTART_COUNT": "2"}
    status, record, _ = call("slurm.sbatch", ["stage2", "train.seed=1"], tools)
    assert status == int(stage_status)
    asked = f"-m pipeline.supervise after stage2 --status {stage_status} --restarts 2 --max-restarts 10 train.seed=1"
    assert record[2:] == [asked, "scontrol requeue 4711"]
    _, record, _ = call("slurm.sbatch", ["stage2", "train.seed=1"], tools | {"EXCLUDED": "node-8"})
    assert record[-2:] == ["scontrol update JobId=4711 ExcNodeList=node-8", "scontrol requeue 4711"]


def test_slurm_leaves_a_run_that_would_fail_again_out_of_the_queue(tools):
    status, record, _ = call("slurm.sbatch", ["stage1"], tools | {"STAGE_STATUS": "2", "AFTER_STATUS": "1"})
    assert status == 2 and not any("requeue" in line for line in record)


def test_slurm_starts_nothing_after_a_failed_preflight(tools):
    status, record, _ = call("slurm.sbatch", ["stage1"], tools | {"PREFLIGHT_STATUS": "1"})
    assert status == 1 and len(record) == 1


def test_every_launcher_passes_a_dry_run_on_and_torchrun_starts_it_once(tools):
    words = ["--dry-run", "train.seed=1"]
    status, record, _ = call("slurm.sbatch", ["stage2", *words], tools)
    assert status == 0 and record[1].endswith("bash launch/stage2.sh --dry-run train.seed=1")
    _, record, _ = call("torchrun.sh", ["stage2", *words], tools)
    assert "--max-restarts 0 " in record[-1] and record[-1].endswith("stages/stage2.py --dry-run train.seed=1")
    _, record, _ = call("supervised.sh", ["stage2", *words], tools)
    assert record[-1] == "-m pipeline.supervise run stage2 --dry-run train.seed=1"
    _, record, _ = call("stage1.sh", words, tools | {"MASTER_PORT": "29501"})
    assert "--processes 4" in record[-1] and record[-1].endswith("stages/stage1.py --dry-run train.seed=1")
    _, record, _ = call("stage1.sh", words, tools | {"RANK": "1", "LOCAL_RANK": "1"})  # as a launcher calls it
    assert record[-1].endswith("stages/stage1.py --dry-run train.seed=1") and "launcher" not in record[-1]


@pytest.mark.parametrize("script", ["slurm.sbatch", "torchrun.sh"])
def test_an_unknown_stage_is_named(tools, script):
    status, record, error = call(script, ["stage3"], tools)
    assert status == 2 and not record and "stage is 'stage3'" in error


def test_torchrun_gets_the_place_of_the_host(tools):
    place = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node-7"}
    status, record, _ = call("torchrun.sh", ["stage1", "train.seed=1"], tools | place)
    assert status == 0 and "--nnodes 2 --node-rank 1 --master-addr node-7 --master-port 29500" in record[0]
    assert "--nproc-per-node 4" in record[0] and record[0].endswith("stages/stage1.py train.seed=1")
    _, record, _ = call("torchrun.sh", ["stage1"], tools)
    assert "--standalone" in record[1] and "--max-restarts 3" in record[1]
    elastic = {"NNODES": "1:4", "MASTER_ADDR": "node-7", "MAX_RESTARTS": "7"}
    _, record, _ = call("torchrun.sh", ["stage1"], tools | elastic)
    assert "--nnodes 1:4 --rdzv-backend c10d --rdzv-endpoint node-7:29500" in record[2]
    assert "--max-restarts 7" in record[2]
    status, _, error = call("torchrun.sh", ["stage1"], tools | {"NNODES": "2"})
    assert status == 2 and "set it on every host" in error
    status, _, error = call("torchrun.sh", ["stage1"], tools | {"NNODES": "2", "MASTER_ADDR": "node-7"})
    assert status == 2 and "set both on every host" in error


def test_the_examples_are_read_as_they_stand(tmp_path, monkeypatch):
    assert [host.slots for host in read_hostfile(PROJECT / "hostfile.example")] == [8, 8]
    monkeypatch.setenv("DS_ENV_FILE", str(PROJECT / "launch" / "deepspeed_env.example"))
    assert launcher_environment()["OMP_NUM_THREADS"] == "8"
