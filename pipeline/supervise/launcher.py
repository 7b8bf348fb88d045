"""Starts a stage with DeepSpeed's launcher again and again, until it has finished or another start is not worth it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from pipeline.base.provenance import PROJECT
from pipeline.preflight.hostfile import Host, read_hostfile, remote_command, run_remote
from pipeline.supervise.attempts import FOLDER_TAKEN, failed_attempts, nodes_to_exclude, pause_seconds, why_not_again

PROBE_SECONDS = 20.0
LEFTOVER_HOSTFILE = "hostfile.left"


class Supervisor:
    """Runs one stage to its end.

    ``divided`` is a number of images that the ranks must divide; None: any number of ranks can go on.
    """

    def __init__(
        self,
        stage: str,
        arguments: list[str],
        run_folder: Path,
        divided: int | None,
        *,
        hostfile: Path | None,
        max_restarts: int,
        first_pause_seconds: float,
    ) -> None:
        self.stage, self.arguments, self.run_folder, self.divided = stage, arguments, run_folder, divided
        self.hosts = read_hostfile(hostfile) if hostfile else []
        self.max_restarts, self.first_pause_seconds = max_restarts, first_pause_seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._stop = 0

    def run(self) -> int:
        """The exit status of the last start."""
        before = {n: signal.signal(n, self._pass_on) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
        try:
            return self._run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run(self) -> int:
        restarts = 0
        while True:
            command = self._command()
            if command is None:
                say("no host is left that can go on; mend a host")
                return 1
            status = self._start(command, restarts)
            reason = why_not_again(status, failed_attempts(self.run_folder), restarts, self.max_restarts)
            if self._stop:
                reason = "it was asked to end"
            if reason:
                say(f"the run is over: {reason}")
                return status
            restarts += 1
            pause = pause_seconds(restarts, self.first_pause_seconds)
            what = "another run holds the folder" if status == FOLDER_TAKEN else f"it failed with status {status}"
            say(f"{what}; restart {restarts} of {self.max_restarts} in {pause:.0f} s")
            end = time.monotonic() + pause
            while time.monotonic() < end and not self._stop:
                time.sleep(min(0.2, pause))
            if self._stop:
                return 128 + self._stop

    def _start(self, command: list[str], restarts: int) -> int:
        environment = {**os.environ, "SUPERVISE_RESTART_COUNT": str(restarts)}
        self._child = subprocess.Popen(command, cwd=PROJECT, env=environment)
        status = self._child.wait()
        return 128 - status if status < 0 else status

    def _command(self) -> list[str] | None:
        if not self.hosts:
            return ["bash", str(PROJECT / "launch" / "stage.sh"), self.stage, *self.arguments]
        left = usable_hosts(self.hosts, nodes_to_exclude(failed_attempts(self.run_folder)), self.divided)
        if not left:
            return None
        file = self.run_folder / LEFTOVER_HOSTFILE
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{host.name} slots={host.slots}\n" for host in left), encoding="utf-8")
        if len(left) < len(self.hosts):
            say(f"on {len(left)} of {len(self.hosts)} hosts: {', '.join(host.name for host in left)}")
        # --force_multi: one host that is left is reached in the same way as several
        return [
            *(sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(file), "--force_multi"),
            *("--launcher", "pdsh", "--master_port", str(_free_port()), "--no_python"),
            *(str(PROJECT / "launch" / f"{self.stage}.sh"), *self.arguments),
        ]

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._stop = self._stop or number
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)


def usable_hosts(hosts: list[Host], excluded: list[str], divided: int | None) -> list[Host]:
    """The hosts that answer and are not excluded; as many of them as have ranks that divide ``divided``."""
    left = [host for host in hosts if host.name not in excluded and answers(host)]
    while left and divided is not None and divided % sum(host.slots for host in left):
        left.pop()
    return left


def answers(host: Host) -> bool:
    """Whether the host can be reached by ssh and runs this Python."""
    command = remote_command(host, sys.executable, ["-c", "pass"], PROBE_SECONDS)
    status, _, error = run_remote(command, PROBE_SECONDS)
    if status:
        say(f"{host.name} does not answer: {' '.join(error.split())[:200]}")
    return status == 0


def say(text: str) -> None:
    """A line between those of the run."""
    print(f"supervise: {text}", flush=True)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])
