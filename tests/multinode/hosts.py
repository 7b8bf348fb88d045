"""Two hosts on one machine: network, mount, name and process namespaces with an address and an sshd each.

What runs in them sees a network of 10.77.0.1 (nodeA) and 10.77.0.2 (nodeB) and the machine's file system. Nothing of
the machine itself changes: no key, no hosts file, no address outside the namespaces. Needs root.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

PACKAGES = {"sshd": "openssh-server", "ssh": "openssh-client", "pdsh": "pdsh", "ip": "iproute2"}
HOSTS = {"nodeA": "10.77.0.1", "nodeB": "10.77.0.2"}
SSH = """#!/bin/sh
exec {ssh} -i {folder}/key -o IdentitiesOnly=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \\
  -o LogLevel=ERROR -o ConnectTimeout=5 -o ServerAliveInterval=5 "$@"
"""


class TwoHosts:
    """A context manager. Commands run on nodeA, from where launchers reach nodeB by ssh."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hostfile = folder / "hostfile"
        self.environment_file = folder / "deepspeed_env"
        self._namespaces: dict[str, str] = {}
        self._inits: dict[str, subprocess.Popen] = {}  # host -> the unshare whose child is the host's first process

    def __enter__(self) -> TwoHosts:
        try:
            self._write_files()
            self._make_network()
            for number, host in enumerate(HOSTS):
                self._start_sshd(host, number)
            for host in HOSTS:
                self._wait_for_ssh(host)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process of both hosts and remove the namespaces, each by its own name."""
        for process in self._inits.values():
            process.kill()  # --kill-child: the host's first process goes, and its process namespace with it
            process.wait()
        self._inits.clear()
        for namespace in self._namespaces.values():
            subprocess.run(["ip", "netns", "del", namespace], check=False)
        self._namespaces.clear()

    def start(self, host: str, command: list[str], folder: Path, log: Path) -> subprocess.Popen:
        """Start a command on a host; stdout and stderr go to ``log``."""
        with open(log, "wb") as output:
            return subprocess.Popen(
                self._entering(host, folder) + command, stdout=output, stderr=subprocess.STDOUT, env=self._environment()
            )

    def run(self, host: str, command: list[str], folder: Path, timeout_seconds: float) -> subprocess.CompletedProcess:
        """Run a command on a host to its end; output as text."""
        return subprocess.run(
            self._entering(host, folder) + command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=self._environment(),
            timeout=timeout_seconds,
        )

    def processes(self, host: str, text: str = "") -> list[psutil.Process]:
        """The running processes of a host whose command line holds ``text``, sshd itself left out."""
        found = []
        for process in psutil.Process(self._first_process(host)).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                line = " ".join(process.cmdline())
                if text in line and "sshd" not in line and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def set_link(self, state: str) -> None:
        """Take nodeB's network away ("down") or give it back ("up")."""
        _run("ip", "-n", self._namespaces["nodeB"], "link", "set", "eth0", state)

    def _environment(self) -> dict[str, str]:
        path = f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "DS_ENV_FILE": str(self.environment_file), "PDSH_RCMD_TYPE": "ssh"}

    def _write_files(self) -> None:
        (self.folder / "bin").mkdir(parents=True)
        for name in ("key", "hostkey"):
            _run("ssh-keygen", "-qt", "ed25519", "-N", "", "-f", str(self.folder / name))
        ssh = self.folder / "bin" / "ssh"  # ahead of the real one on PATH, so that ~/.ssh stays untouched
        ssh.write_text(SSH.format(ssh=shutil.which("ssh"), folder=self.folder))
        ssh.chmod(0o755)
        names = "".join(f"{address} {host}\n" for host, address in HOSTS.items())
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n" + names)
        self.hostfile.write_text("".join(f"{host} slots=1\n" for host in HOSTS))
        self.environment_file.write_text(
            f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}\nOMP_NUM_THREADS=1\nDEEPSPEED_TIMEOUT=1\n"
        )

    def _make_network(self) -> None:
        # device and namespace names are the machine's: the process id keeps two test runs apart
        mark = str(os.getpid())
        ends = [f"vA{mark}", f"vB{mark}"]
        _run("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for end, (host, address) in zip(ends, HOSTS.items(), strict=True):
            namespace = f"{host}-{mark}"
            _run("ip", "netns", "add", namespace)
            self._namespaces[host] = namespace
            _run("ip", "link", "set", end, "netns", namespace, "name", "eth0")
            _run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
            _run("ip", "-n", namespace, "link", "set", "lo", "up")
            _run("ip", "-n", namespace, "link", "set", "eth0", "up")

    def _start_sshd(self, host: str, number: int) -> None:
        Path("/run/sshd").mkdir(exist_ok=True)
        w = self.folder
        options = f"-o ListenAddress={HOSTS[host]} -o AuthorizedKeysFile={w}/key.pub -o StrictModes=no -o UsePAM=no"
        script = (
            f"hostname {host}; mount --bind {w}/hosts /etc/hosts; "
            f"exec {shutil.which('sshd')} -D -f /dev/null -o PidFile=none -E {w}/sshd-{host}.log "
            f"-h {w}/hostkey {options}"
        )
        inside = ["ip", "netns", "exec", self._namespaces[host], "unshare", "-mupf", "--kill-child", "--mount-proc"]
        self._inits[host] = subprocess.Popen([*inside, "bash", "-c", script])

    def _wait_for_ssh(self, host: str, timeout_seconds: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(psutil.NoSuchProcess, IndexError, subprocess.TimeoutExpired):
                if self.run("nodeA", ["ssh", host, "hostname"], self.folder, 10).stdout.strip() == host:
                    return
            time.sleep(0.1)
        log = self.folder / f"sshd-{host}.log"
        raise RuntimeError(f"no ssh to {host}: {log.read_text() if log.exists() else 'sshd did not start'}")

    def _first_process(self, host: str) -> int:
        return psutil.Process(self._inits[host].pid).children()[0].pid

    def _entering(self, host: str, folder: Path) -> list[str]:
        return ["nsenter", "-t", str(self._first_process(host)), "-n", "-m", "-u", "-p", f"--wd={folder}"]


def end(process: subprocess.Popen) -> None:
    """End a command that is still running, with everything it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGKILL)
    process.kill()
    process.wait()


def require_packages() -> None:
    """Skip, with the reason, where two hosts cannot be made; install the Debian packages that are missing."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("network namespaces need root on Linux")
    os.environ["PATH"] = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # sshd and ip are not on every root's PATH
    with open(Path(tempfile.gettempdir()) / "multinode-packages.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest's workers install one after another
        missing = [package for program, package in PACKAGES.items() if shutil.which(program) is None]
        if missing:
            if shutil.which("apt-get") is None:
                pytest.skip(f"missing {', '.join(missing)}, and no apt-get to install them")
            _install(missing)
    probe = subprocess.run(["unshare", "-mupnf", "--mount-proc", "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"namespaces cannot be made here: {probe.stderr.strip()}")


def _install(packages: list[str]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    options = ["-qq", "-o", "DPkg::Lock::Timeout=120"]
    commands = [["update"], ["install", "-y", "--no-install-recommends", *packages]]
    for command in commands:
        done = subprocess.run(
            ["apt-get", *options, *command], capture_output=True, text=True, env=environment, timeout=300
        )
    if done.returncode:
        pytest.skip(f"apt-get install {' '.join(packages)} failed: {done.stderr.strip()[-300:]}")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
