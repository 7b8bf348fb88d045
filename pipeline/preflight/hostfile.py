"""The hostfile, and commands on its hosts by ssh."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.base.border import BorderError, one_line, quoted, read_bounded

# A name that begins with a dash would be an option of ssh, and may be one that runs a program.
LINE = re.compile(r"([\w@][\w.:@-]{0,252})\s+slots\s*=\s*([0-9]{1,9})")
MAX_SLOTS = 4096  # processes of one host
MAX_OUTPUT_BYTES = 16 << 20  # of a command: a host's report is some kilobytes, a torchrun's log some hundred
ENVIRONMENT_FILE = ".deepspeed_env"
SSH = ["ssh", "-o", "BatchMode=yes"]  # a password's prompt would hang a launcher
SSH_FAILED = 255


class HostfileError(ValueError):
    """A line of the hostfile or of .deepspeed_env cannot be used; names file, line and remedy."""


@dataclass(frozen=True)
class Host:
    """One line of a hostfile."""

    name: str
    slots: int
    line: int

    def __str__(self) -> str:
        return f"line {self.line} ({self.name} slots={self.slots})"


def read_hostfile(path: str | Path) -> list[Host]:
    """The hosts, in order; the first is where rank 0 runs.

    Raises:
        HostfileError: no such file, no host, or a line that is not ``NAME slots=N``, or names a host again.
    """
    path = Path(path)
    if not path.is_file():
        raise HostfileError(f"hostfile {path} does not exist; copy hostfile.example and name your hosts in it")
    try:
        content = read_bounded(path).decode("utf-8-sig")
    except (BorderError, UnicodeDecodeError) as error:
        raise HostfileError(f"hostfile {path} cannot be read ({one_line(error)}); give a text file in UTF-8") from error
    hosts: list[Host] = []
    for number, text in enumerate(content.splitlines(), 1):
        line = text.partition("#")[0].strip()
        if not line:
            continue
        match = LINE.fullmatch(line)
        if match is None or not 1 <= int(match.group(2)) <= MAX_SLOTS:
            raise HostfileError(
                f"{path} line {number} is {quoted(line)}; write NAME slots=N, N from 1 to {MAX_SLOTS}; "
                "a name has letters, digits, dots, colons, dashes and underscores, and begins with none of '-.:'"
            )
        known = next((host for host in hosts if host.name == match.group(1)), None)
        if known is not None:
            raise HostfileError(
                f"{path} line {number} names {known.name} again (line {known.line}); remove one of them"
            )
        hosts.append(Host(match.group(1), int(match.group(2)), number))
    if not hosts:
        raise HostfileError(f"{path} names no host; write a line NAME slots=N for each")
    return hosts


def launcher_environment() -> dict[str, str]:
    """What DeepSpeed's launcher passes on: .deepspeed_env (or DS_ENV_FILE) of the home, then that of this folder.

    Raises:
        HostfileError: a line without "=", also an empty one or a comment, at which the launcher would stop.
    """
    name = os.environ.get("DS_ENV_FILE", ENVIRONMENT_FILE)
    found: dict[str, str] = {}
    for path in dict.fromkeys((Path.home() / name, Path.cwd() / name)):
        if not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            variable, equals, value = line.partition("=")
            if not equals:
                raise HostfileError(
                    f"{path} line {number} is {line!r}; DeepSpeed's launcher stops at a line without '=', remove it"
                )
            found[variable] = value
    return found


def remote_command(host: Host, python: str, arguments: list[str], timeout_seconds: float) -> list[str]:
    """An ssh command that runs a module of this project on a host, in this folder, and ends it after the time-out."""
    assignments = [f"{name}={shlex.quote(value)}" for name, value in launcher_environment().items()]
    inner = [
        f"cd {shlex.quote(os.getcwd())} &&",
        *(["env", *assignments] if assignments else []),
        f"timeout -k 5 {timeout_seconds:.0f}",
        shlex.quote(python),
        *(shlex.quote(argument) for argument in arguments),
    ]
    return [*SSH, "-o", f"ConnectTimeout={max(1, min(10, int(timeout_seconds)))}", host.name, " ".join(inner)]


def run_remote(command: list[str], timeout_seconds: float) -> tuple[int, str, str]:
    """(status, stdout, stderr) of a command; status 124 when it took longer than the time-out, as timeout(1) has it.

    A command that prints without end is ended at :data:`MAX_OUTPUT_BYTES`, with status 125.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # so that all of it can be ended, which else would hold the pipes open
        )
    except FileNotFoundError as error:
        return SSH_FAILED, "", f"{error.filename} is not installed on this host"
    with process, ThreadPoolExecutor(2) as pool:
        readings = [pool.submit(_read_bounded, process, stream) for stream in (process.stdout, process.stderr)]
        try:
            process.wait(timeout_seconds + 10)
        except subprocess.TimeoutExpired:
            _end(process)
            return 124, "", f"no answer after {timeout_seconds:.0f} s"
        except KeyboardInterrupt:
            _end(process)
            raise
        output, errors = (reading.result() for reading in readings)
    if max(len(output), len(errors)) > MAX_OUTPUT_BYTES:
        return 125, "", f"it printed more than {MAX_OUTPUT_BYTES} bytes; look at the start files of its shell"
    return process.returncode, output.decode("utf-8", "replace"), errors.decode("utf-8", "replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _read_bounded(process: subprocess.Popen[bytes], stream: IO[bytes] | None) -> bytes:
    """All that comes, or one byte more than the limit; then the command is ended."""
    data = stream.read(MAX_OUTPUT_BYTES + 1) if stream else b""
    if len(data) > MAX_OUTPUT_BYTES:
        _end(process)
    return data
