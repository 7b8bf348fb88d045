"""A preflight finds each fault a host can have, and names the line to fix."""

from __future__ import annotations

import argparse
import json
import os
import sys

import pytest
import torch

from data_tools.shards import ShardWriter
from pipeline.base.ranks import read_rank_info
from pipeline.data.schema import Sample
from pipeline.preflight.__main__ import main
from pipeline.preflight.hostfile import Host, HostfileError, launcher_environment, read_hostfile, remote_command
from pipeline.preflight.launched import check_ranks
from pipeline.preflight.report import HostReport, make_report, sampled
from pipeline.preflight.verdict import HostRow, Limits, judge
from tests.ranks import run_ranks

FAKE_SSH = """#!/bin/sh
for last; do before=$host; host=$name; name=$last; done
case "$host" in
dead) echo "ssh: connect to host dead port 22: Connection refused" >&2; exit 255;;
empty) echo "bash: line 1: cd: /nowhere: No such file or directory" >&2; exit 1;;
esac
echo "a greeting of the login script"
exec sh -c "$name"
"""


def row(line: int, **changes) -> HostRow:
    facts = {
        "host": f"node{line}",
        "python": "/env/bin/python",
        "versions": {"python": "3.11", "torch": "2.13"},
        "revision": "abcdef1234567890",
        "accelerators": ["H200"] * 8,
        "address": "10.0.0.1",
        "free_gigabytes": 500.0,
        "shards": {"shards/train": "d1"},
    } | changes
    clock = facts.pop("clock", 0.0)
    return HostRow(f"node{line}", str(Host(f"node{line}", 8, line)), 8, HostReport(**facts), None, clock, 1.0)


def test_equal_hosts_have_no_fault():
    assert judge([row(1), row(2)], Limits()) == []


@pytest.mark.parametrize(
    ("column", "changes", "words"),
    [
        ("packages", {"versions": {"python": "3.11", "torch": "2.12"}}, "torch 2.12, not 2.13 as on node1"),
        ("revision", {"revision": "0123456789abcdef"}, "check out the same commit"),
        ("revision", {"revision": None}, "code revision none"),
        ("accelerators", {"accelerators": ["H200"] * 7}, "slots=8, but 7 accelerators"),
        ("accelerators", {"accelerators": ["A100"] * 8}, "A100, H200 on node1"),
        ("accelerators", {"accelerators": []}, "0 accelerators"),
        ("clock", {"clock": 90.0}, "clock differs by +90.0 s"),
        ("disk", {"free_gigabytes": 3.0}, "3.0 GB free"),
        ("decoding", {"images_per_second": 300.0}, "its cores decode 300 images/s"),
        ("shards", {"shards": {"shards/train": "d2"}}, "other shards than on node1"),
        ("shards", {"shards": {}, "shard_errors": {"shards/train": "分片不存在"}}, "分片不存在"),
    ],
)
def test_a_fault_is_named_with_the_line_of_the_hostfile(column, changes, words):
    rows = [row(1), row(4, **changes)]
    faults = judge(rows, Limits(images_per_second=500.0))
    assert len(faults) == 1 and faults[0].startswith("line 4 (node4 slots=8): ") and words in faults[0]
    assert rows[1].cells[column].startswith("FAIL") and not any("FAIL" in cell for cell in rows[0].cells.values())


def test_a_hostfile_is_read_as_deepspeed_reads_it(tmp_path):
    path = tmp_path / "hostfile"
    path.write_text("# 两台机器\n\nnode-1 slots=8  # first\nuser@10.0.0.2   slots = 4\n", encoding="utf-8")
    assert read_hostfile(path) == [Host("node-1", 8, 3), Host("user@10.0.0.2", 4, 4)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not exist; copy hostfile.example"),
        ("# none\n", "names no host"),
        ("a slots=1\nb\n", "line 2 is 'b'; write NAME slots=N"),
        ("a slots=0\n", "line 1"),
        ("a slots=1\na slots=2\n", "line 2 names a again (line 1)"),
    ],
)
def test_a_wrong_hostfile_is_one_line_with_its_remedy(tmp_path, capsys, text, words):
    path = tmp_path / "hostfile"
    if text is not None:
        path.write_text(text)
    assert main(["--hostfile", str(path)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_commands_carry_what_the_launcher_would_pass_on(tmp_path, monkeypatch):
    (tmp_path / "environment").write_text("NCCL_SOCKET_IFNAME=eth0\nPATH=/a b:/c\n")
    monkeypatch.setenv("DS_ENV_FILE", str(tmp_path / "environment"))
    assert launcher_environment() == {"NCCL_SOCKET_IFNAME": "eth0", "PATH": "/a b:/c"}
    (tmp_path / "wrong").write_text("A=1\n\nB=2\n")
    monkeypatch.setenv("DS_ENV_FILE", str(tmp_path / "wrong"))
    with pytest.raises(HostfileError, match="line 2"):
        launcher_environment()
    monkeypatch.setenv("DS_ENV_FILE", str(tmp_path / "environment"))
    command = remote_command(Host("n", 1, 1), "python", ["-m", "x"], 60)
    assert "BatchMode=yes" in command and "env NCCL_SOCKET_IFNAME=eth0 PATH='/a b:/c' timeout -k 5 60" in command[-1]


def test_hosts_are_asked_by_ssh_and_those_that_do_not_answer_are_explained(tmp_path, monkeypatch, capsys):
    ssh = tmp_path / "ssh"
    ssh.write_text(FAKE_SSH)
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("DS_ENV_FILE", raising=False)
    (tmp_path / "hostfile").write_text("alive slots=1\ndead slots=1\nempty slots=1\n")
    out = tmp_path / "preflight.json"
    wanted = ["--min-free-gigabytes", "0", "--json", str(out), "--shards", str(tmp_path / "分片")]
    assert main(["--hostfile", str(tmp_path / "hostfile"), "--run-folder", str(tmp_path), *wanted]) == 1
    text = capsys.readouterr().out
    assert "line 2 (dead slots=1): ssh dead failed" in text and "Connection refused" in text
    assert "line 3 (empty slots=1)" in text and "install the project there at the same paths" in text
    assert "line 1 (alive slots=1): shard folder" in text and "分片 does not exist" in text
    hosts = json.loads(out.read_text(encoding="utf-8"))["hosts"]
    assert hosts[0]["report"]["python"] == sys.executable and abs(hosts[0]["clock_offset_seconds"]) < 5


def test_shards_that_are_cut_or_missing_are_found(tmp_path):
    folder = tmp_path / "train"
    with ShardWriter(folder, "scene", samples_per_shard=1) as writer:
        for key in ("a", "b"):
            writer.write(key, _png(), "png", Sample("zh", 16, 16, short_caption="红杯子"))
    good = make_report(str(tmp_path), [str(folder)])
    assert good.images_per_second > 0
    assert sampled(10**6)[0] == 0 and sampled(10**6)[-1] == 10**6 - 1 and len(sampled(10**6)) == 500
    assert good.num_samples == 2 and len(good.shards[str(folder)]) == 12 and good.free_gigabytes > 0
    shards = sorted(folder.glob("*.tar"))
    shards[0].write_bytes(shards[0].read_bytes()[:-512])
    assert "its manifest says" in make_report(str(tmp_path), [str(folder)]).shard_errors[str(folder)]
    shards[0].unlink()
    assert "is not there" in make_report(str(tmp_path), [str(folder)]).shard_errors[str(folder)]


def test_under_a_launcher_every_host_reports_once_and_all_ranks_agree(tmp_path):
    statuses = run_ranks(2, launched, str(tmp_path))
    assert statuses == [0, 0]
    record = json.loads((tmp_path / "out.json").read_text())
    assert [host["slots"] for host in record["hosts"]] == [2] and "ranks 0 to 1" in record["hosts"][0]["label"]
    assert record["all_reduce"]["right"] and record["all_reduce"]["ranks"] == 2
    assert run_ranks(2, launched, str(tmp_path), 1e9) == [1, 1]


def launched(folder: str, min_free_gigabytes: float = 0.0) -> int:
    from pathlib import Path

    arguments = argparse.Namespace(
        all_reduce_only=False, run_folder=folder, shards=[], megabytes=0.4, json=Path(folder) / "out.json"
    )
    return check_ranks(read_rank_info(), arguments, Limits(free_gigabytes=min_free_gigabytes), torch.device("cpu"))


def _png() -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG")
    return buffer.getvalue()
