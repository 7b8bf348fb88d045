"""One run in a run folder at a time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.base.run_lock import RunFolderTaken, RunLock

HOLD = """
import sys, time
from pipeline.base.run_lock import RunLock
with RunLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_second_is_refused_with_the_firsts_host_and_process_and_a_kill_frees_the_folder(tmp_path: Path):
    folder = tmp_path / "运行 1"
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None and first.stdout.readline() == b"held\n"
        with pytest.raises(RunFolderTaken) as refused, RunLock(folder):
            pass
        for words in (str(first.pid), socket.gethostname(), "运行 1", "train.run_folder"):
            assert words in str(refused.value)
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        first.stdout.close()
    with RunLock(folder):
        assert str(os.getpid()) in (folder / ".lock").read_text()
    with RunLock(folder):
        pass
