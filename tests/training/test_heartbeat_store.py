"""The heartbeat's store is deaf to strangers, and a rank whose launcher is gone stops."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from pipeline.base.ranks import has_launcher
from pipeline.training.heartbeat_store import LOOPBACK, SignedStore, _listen
from pipeline.training.rank_report import parse_report

ROOT = Path(__file__).resolve().parents[2]


def test_a_stranger_is_not_heard_whatever_is_written():
    store = dist.HashStore()
    ours, stranger = SignedStore(store, b"secret"), SignedStore(store, b"guess")
    ours.set("heartbeat/0", "步骤 1")
    ours.set("heartbeat/1", "step 2")
    assert ours.get(["heartbeat/0", "heartbeat/1"]) == ["步骤 1", "step 2"]
    stranger.set("heartbeat/0", "rank 3 failed \x1b[2J")
    store.set("heartbeat/1", store.get("heartbeat/0"))
    assert ours.get(["heartbeat/0", "heartbeat/1"]) == [None, None]
    for raw in (b"", b"x", b"x" * 40, b"x" * 1_000_000):
        store.set("heartbeat/0", raw)
        assert ours.get(["heartbeat/0"]) == [None]
    ours.set("heartbeat/0", "rank 0 again")
    store.set("heartbeat/1", store.get("heartbeat/0"))  # a signed word at another's place
    assert ours.get(["heartbeat/0", "heartbeat/1"]) == ["rank 0 again", None]


def test_a_report_is_of_its_rank_or_none():
    assert parse_report('{"rank": 1, "step": 3}', 1).step == 3
    for text in ("", "[]", "null", '{"rank": 0}', '{"rank": "x"}', '{"rank": 1, "step": []}', "[" * 10_000):
        assert parse_report(text, 1) is None


def test_the_store_listens_on_one_address_alone():
    listening = _listen(LOOPBACK)
    port = listening.getsockname()[1]
    store = dist.TCPStore(LOOPBACK, port, None, True, timedelta(seconds=5), False, master_listen_fd=listening.detach())
    store.set("a", "b")
    table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    table += [line.split() for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    listeners = [line[1] for line in table if line[3] == "0A" and line[1].endswith(f":{port:04X}")]
    assert listeners == [f"{int.from_bytes(socket.inet_aton(LOOPBACK), 'little'):08X}:{port:04X}"]


def test_only_launchers_that_do_not_end_their_ranks_are_followed():
    assert has_launcher({"TORCHELASTIC_RUN_ID": "x"}) and has_launcher({"CROSS_RANK": "0", "LOCAL_SIZE": "2"})
    assert not has_launcher({}) and not has_launcher({"SLURM_PROCID": "0", "LOCAL_SIZE": "2"})


RANK = """
import signal, sys, threading
from pipeline.training.heartbeat import Heartbeat
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
with Heartbeat(0, 1, 60.0) as heartbeat:
    open(sys.argv[1], "w").write("runs")
    while not stop.is_set():
        stop.wait(0.1)
open(sys.argv[1], "w").write("stopped")
"""
LAUNCHER = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', *sys.argv[1:]]).wait()"


def test_a_rank_stops_when_its_launcher_was_killed(tmp_path):
    note = tmp_path / "note"
    environment = os.environ | {"CROSS_RANK": "0", "LOCAL_SIZE": "1", "PYTHONPATH": str(ROOT)}
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, RANK, str(note)], env=environment)
    _wait_for(note, "runs")
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    _wait_for(note, "stopped")


def _wait_for(note: Path, text: str) -> None:
    while not (note.exists() and note.read_text() == text):  # the test's own limit ends a wait without an end
        time.sleep(0.05)
