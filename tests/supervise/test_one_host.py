"""Ranks on one machine: their variables, the status of the one that failed, and an end by Ctrl-C that waits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline.supervise import one_host
from pipeline.supervise.one_host import OneHost, main
from tests.end_to_end.runs import ROOT

SCRIPT = """
import json, os, signal, sys, time
out, what = sys.argv[2:4]
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "CROSS_RANK", "MASTER_ADDR", "MASTER_PORT")
rank = os.environ["RANK"]
if what == "wait":
    got = []
    signal.signal(signal.SIGINT, lambda number, frame: got.append(number))
    open(f"{out}/{rank}.ready", "w").close()
    while not got:
        time.sleep(0.01)
    time.sleep(0.5)
with open(f"{out}/{rank}", "w") as file:
    json.dump([sys.argv[1], {name: os.environ[name] for name in names}], file)
if what == "hang" and rank == "0":
    time.sleep(600)
sys.exit({"good": 0, "wait": 130}.get(what, 3 if rank == "1" else 0))
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "阶段 script.py"
    path.write_text(SCRIPT, encoding="utf-8")
    return path


def test_every_rank_has_its_variables(script, tmp_path):
    assert main(["--processes", "2", "--port", "1234", str(script), str(tmp_path), "good"]) == 0
    for rank in ("0", "1"):
        argument, found = json.loads((tmp_path / rank).read_text(encoding="utf-8"))
        assert argument == f"--local_rank={rank}" and found["RANK"] == found["LOCAL_RANK"] == rank
        assert found["WORLD_SIZE"] == found["LOCAL_SIZE"] == "2" and found["MASTER_PORT"] == "1234"


def test_the_status_is_that_of_the_rank_that_failed_and_none_stays(script, tmp_path, monkeypatch):
    assert OneHost([str(script), str(tmp_path), "bad"], 2, 1).run() == 3
    monkeypatch.setattr(one_host, "GRACE_SECONDS", 0.2)
    ranks = OneHost([str(script), str(tmp_path), "hang"], 2, 1)
    assert ranks.run() == 3 and all(rank.poll() is not None for rank in ranks._ranks)


def test_ctrl_c_waits_for_the_ranks_and_ends_with_their_status(script, tmp_path):
    words = [
        sys.executable,
        "-m",
        "pipeline.supervise.one_host",
        "--processes",
        "2",
        str(script),
        str(tmp_path),
        "wait",
    ]
    process = subprocess.Popen(words, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while len(list(tmp_path.glob("*.ready"))) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(60) == 130 and (tmp_path / "0").is_file() and (tmp_path / "1").is_file()
    assert process.stderr.read() == "", "no traceback over a checkpoint that was saved"
