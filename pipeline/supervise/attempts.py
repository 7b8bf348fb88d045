"""The starts of a run and how each ended, in ``RUN/attempts.jsonl``; the one home of what is decided from them.

A start notes itself, and its step as it goes on; a clean end notes that too. A start that left no end failed, and the
step that it had reached is where. So a kill -9 of everything is counted like any other failure.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from pipeline.base.border import MAX_LINE_BYTES
from pipeline.base.border import read_lines as read_lines_of
from pipeline.base.commands import BAD_INPUT

FILE = "attempts.jsonl"
STEP = ".step"
STEP_BYTES = 20
BEFORE_TRAINING = -1  # the step of a start that failed before its first one
_HOST = re.compile(r"\(host ([^)]+)\)")

# How a stage ends, and what that means for another start. Other statuses are taken for faults of the machine.
FINISHED, NOT_FINITE, FOLDER_TAKEN = 0, 3, 75  # beside BAD_INPUT
STOPPED = {130: "Ctrl-C", 143: "SIGTERM"}
TIME_LIMIT = 138  # 128 + SIGUSR1: a checkpoint was saved in time

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 10.0, 600.0
FAULTS_OF_A_NODE = 2  # after so many it is left out


@dataclass(frozen=True)
class Attempt:
    """One start that failed."""

    step: int
    hosts: tuple[str, ...]  # that its heartbeats blamed
    reason: str


class _Line(TypedDict, total=False):
    """A line of the notes: one of start, end, failed and verdict, with what belongs to it."""

    start: float
    host: str
    process: int
    end: float
    status: int
    failed: float
    step: int
    verdict: str
    hosts: list[str]


_LINE: TypeAdapter[_Line] = TypeAdapter(_Line)


class AttemptLog:
    """Notes of one start; kept by the main rank alone."""

    def __init__(self, run_folder: str | Path) -> None:
        self._folder = Path(run_folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._close_earlier()
        _append(self._folder, {"start": _now(), "host": socket.gethostname(), "process": os.getpid()})
        self._file = os.open(self._folder / STEP, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.at_step(BEFORE_TRAINING)

    def at_step(self, step: int) -> None:
        """This step begins; a write of a few bytes into the system's cache, which outlives this process."""
        os.pwrite(self._file, f"{step:<{STEP_BYTES}}".encode("ascii"), 0)

    def ended(self, status: int) -> None:
        """The start ended as it should: finished, or stopped on request."""
        _append(self._folder, {"end": _now(), "status": status})
        os.close(self._file)

    def failed(self) -> None:
        """The start ended by an error; what it reached is counted by the next one."""
        os.close(self._file)

    def _close_earlier(self) -> None:
        """Note where the start before failed, while its step is still there."""
        step = reached_step(self._folder)
        if step is not None and _open_start(read_lines(self._folder)):
            _append(self._folder, {"failed": _now(), "step": step})


def note_verdict(run_folder: str | Path, verdict: str) -> None:
    """Why the heartbeats ended this start, and which hosts they blamed."""
    _append(Path(run_folder), {"verdict": verdict, "hosts": sorted(set(_HOST.findall(verdict)))})


def reached_step(run_folder: str | Path) -> int | None:
    """The step of the newest start, whether it lives or not."""
    try:
        return int((Path(run_folder) / STEP).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def failed_attempts(run_folder: str | Path) -> list[Attempt]:
    """The starts that failed since the last clean end, oldest first; the newest one counts if it left no end."""
    found: list[Attempt] = []
    hosts: tuple[str, ...] = ()
    reason = "it was killed"
    lines = read_lines(run_folder)
    for line in lines:
        if "start" in line or "end" in line:
            hosts, reason = (), "it was killed"
        if "end" in line:
            found = []
        elif "verdict" in line:
            hosts, reason = tuple(line.get("hosts") or ()), line["verdict"]
        elif "failed" in line:
            found.append(Attempt(line.get("step", BEFORE_TRAINING), hosts, reason))
    step = reached_step(run_folder)
    if step is not None and _open_start(lines):
        found.append(Attempt(step, hosts, reason))
    return found


def same_step_twice(attempts: list[Attempt]) -> str:
    """Why another start is not worth it, or ""."""
    if len(attempts) < 2 or attempts[-1].step != attempts[-2].step:
        return ""
    step = attempts[-1].step
    where = "before its first step" if step == BEFORE_TRAINING else f"at step {step}"
    return (
        f"the run failed {where} twice in a row (last: {attempts[-1].reason}); another restart would do the same. "
        "Mend the cause and start it by hand"
    )


def nodes_to_exclude(attempts: list[Attempt]) -> list[str]:
    """Hosts that were blamed for two failures or more."""
    blamed = Counter(host for attempt in attempts for host in attempt.hosts)
    return sorted(host for host, times in blamed.items() if times >= FAULTS_OF_A_NODE)


def pause_seconds(restart: int, first_seconds: float = FIRST_PAUSE_SECONDS) -> float:
    """The wait before restart number ``restart`` (from 1): twice as long each time, ten minutes at most."""
    return min(LONGEST_PAUSE_SECONDS, first_seconds * 2.0 ** (restart - 1))


def restart_count(environment: Mapping[str, str]) -> int:
    """How often a launcher has restarted this process by itself; 0 for a start by hand."""
    for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT", "SUPERVISE_RESTART_COUNT"):
        value = environment.get(name, "")
        if value.isdigit() and int(value) > 0:
            return int(value)
    return 0


def why_not_again(status: int, attempts: list[Attempt], restarts: int, max_restarts: int) -> str:
    """Why a run that ended with ``status`` is not to be started again; "" where it is."""
    if status == FINISHED:
        return "finished"
    if status == BAD_INPUT:
        return "settings or data cannot be used (status 2); the message above says which"
    if status == NOT_FINITE:
        return "a loss or gradient is not finite (status 3); replay it with the command above"
    if status in STOPPED:
        return f"it was asked to end ({STOPPED[status]})"
    if restarts >= max_restarts:
        return f"it failed (status {status}) after {restarts} restarts, which is the limit"
    return "" if status in (TIME_LIMIT, FOLDER_TAKEN) else same_step_twice(attempts)


def read_lines(run_folder: str | Path) -> list[_Line]:
    """The notes; a line torn by a kill is left out."""
    lines = []
    with suppress(OSError):
        for line in read_lines_of(Path(run_folder) / FILE, MAX_LINE_BYTES):
            with suppress(ValidationError):
                lines.append(_LINE.validate_json(line))
    return lines


def _open_start(lines: list[_Line]) -> bool:
    """Whether the newest start has neither end nor failure."""
    for line in reversed(lines):
        if "end" in line or "failed" in line:
            return False
        if "start" in line:
            return True
    return False


def _append(folder: Path, record: dict[str, Any]) -> None:
    line = (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8")
    with open(folder / FILE, "ab+") as file:
        if file.tell():  # a kill may have left the last line without its end
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)


def _now() -> float:
    return round(time.time(), 1)
