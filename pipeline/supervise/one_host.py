"""Start the ranks of a script on this machine and wait for them; what launch/stage.sh does when it is called by hand.

The ranks get the variables that DeepSpeed's own launcher sets, and run under DeepSpeed as with it. What differs is the
end: on Ctrl-C that launcher kills the ranks after 30 seconds, finished saving or not, and ends with tracebacks and
status 1. This one leaves the ranks the time they take, and ends with their status (130). It prints nothing of its own.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from pipeline.base.commands import command_parser

EXAMPLES = """examples:
  python -m pipeline.supervise.one_host --processes 2 stages/stage1.py --config mine.yaml
  PROCESSES=2 bash launch/stage1.sh --config mine.yaml      (the same)
"""
FORWARDED = (signal.SIGTERM, signal.SIGUSR1)
# A rank that failed takes the others along by the heartbeats, which name it; this is for ranks that have none yet.
GRACE_SECONDS = 30.0
POLL_SECONDS = 0.1


class OneHost:
    """The ranks of one start."""

    def __init__(self, script: Sequence[str], processes: int, port: int) -> None:
        self._ranks: list[subprocess.Popen[bytes]] = []
        self._script, self._processes, self._port = list(script), processes, port
        self._stopping = False

    def run(self) -> int:
        """Start all ranks and wait for all of them; the status of the first that failed, else 0."""
        before = {number: signal.signal(number, self._pass_on) for number in FORWARDED}
        # Ctrl-C reaches the ranks by itself, since the terminal sends it to all; this process only waits for them.
        before[signal.SIGINT] = signal.signal(signal.SIGINT, self._note)
        try:
            for rank in range(self._processes):
                self._ranks.append(self._start(rank))
            return self._wait()
        finally:
            for rank_process in self._ranks:
                if rank_process.poll() is None:
                    rank_process.kill()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self, rank: int) -> subprocess.Popen[bytes]:
        count = str(self._processes)
        variables = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": count, "LOCAL_SIZE": count,
            "CROSS_RANK": "0", "CROSS_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._port),
        }  # fmt: skip
        command = [sys.executable, "-u", self._script[0], f"--local_rank={rank}", *self._script[1:]]
        return subprocess.Popen(command, env={**os.environ, **variables})

    def _wait(self) -> int:
        status, failed_at = 0, 0.0
        while any(rank.poll() is None for rank in self._ranks):
            ended = [rank.returncode for rank in self._ranks if rank.poll() is not None]
            failed = [code for code in ended if code]
            if failed and not status:
                status, failed_at = failed[0], time.monotonic()
            if status and not self._stopping and time.monotonic() - failed_at > GRACE_SECONDS:
                for rank in self._ranks:
                    if rank.poll() is None:
                        rank.kill()
            time.sleep(POLL_SECONDS)
        status = status or next((rank.returncode for rank in self._ranks if rank.returncode), 0)
        return 128 - status if status < 0 else status

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        for rank in self._ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m pipeline.supervise.one_host", __doc__, EXAMPLES)
    parser.add_argument("--processes", type=int, required=True, help="ranks to start here")
    parser.add_argument("--port", type=int, help="at which they meet (default: MASTER_PORT, else a free one)")
    parser.add_argument("script", help="a Python file")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="for the script")
    arguments = parser.parse_args(argv)
    if arguments.processes < 1:
        parser.error(f"--processes is {arguments.processes}; it must be 1 or more")
    port = arguments.port or int(os.environ.get("MASTER_PORT") or _free_port())
    return OneHost([arguments.script, *arguments.arguments], arguments.processes, port).run()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
