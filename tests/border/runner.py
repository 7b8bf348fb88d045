"""Drives the process that reads damaged input: a case that hangs or kills it is counted, and the next one goes on."""

from __future__ import annotations

import json
import os
import random
import selectors
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.border.damage import Damage
from tests.border.formats import load_format

HANG_SECONDS = 20.0  # of processor time
STILL_SECONDS = 300.0  # for what waits without using any
START_SECONDS = 120.0  # the first case of a format imports what reads it
CORPUS = Path(__file__).with_name("corpus")
GOOD = ("named", "harmless")


@dataclass(frozen=True)
class Case:
    """One damage of a format; ``number`` is its seed, or its name in the corpus."""

    format: str
    number: int | str
    damage: Damage
    outcome: str
    text: str
    seconds: float
    megabytes: int

    def __str__(self) -> str:
        return f"{self.format} {self.number}: {self.outcome} ({self.text}) {json.dumps(self.damage.to_json())[:300]}"


@dataclass
class Tally:
    """What became of a format's cases."""

    format: str
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[Case] = field(default_factory=list)
    slowest_seconds: float = 0.0
    most_megabytes: int = 0

    def add(self, case: Case) -> None:
        self.outcomes[case.outcome] += 1
        self.slowest_seconds = max(self.slowest_seconds, case.seconds)
        self.most_megabytes = max(self.most_megabytes, case.megabytes)
        if case.outcome not in GOOD:
            self.findings.append(case)


class Child:
    """The reading process; started when first needed and again after each case that ended it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._answers: Any = None
        self._warm: set[str] = set()  # formats whose imports this process has made

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer; ``hang`` or ``crash`` where none came, and the process is a new one then."""
        process = self._process or self._start()
        assert process.stdin is not None  # _start opened it
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        limit = HANG_SECONDS if request["format"] in self._warm else START_SECONDS
        ready = self._wait(process, limit)
        line = self._answers.readline() if ready else ""
        if line:
            self._warm.add(request["format"])
            return json.loads(line)
        self.close()
        what = "crash" if ready else "hang"
        return {"outcome": what, "text": f"status {process.returncode}", "seconds": limit, "megabytes": 0}

    def _wait(self, process: subprocess.Popen, limit: float) -> bool:
        """Whether an answer came; the limit is of the process's own time, so that a busy machine makes no hang."""
        end, used = time.monotonic() + STILL_SECONDS, _cpu_seconds(process.pid)
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            while not (ready := bool(selector.select(1.0))):
                if _cpu_seconds(process.pid) - used > limit or time.monotonic() > end:
                    break
        return ready

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._answers.close()
        self._process, self._warm = None, set()

    def _start(self) -> subprocess.Popen:
        reading, writing = os.pipe()
        os.set_inheritable(writing, True)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.border.child", str(writing)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            pass_fds=[writing],
            cwd=Path(__file__).parents[2],
            env=environment,
        )
        os.close(writing)
        self._answers = os.fdopen(reading, encoding="utf-8")
        return self._process


def _cpu_seconds(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:  # it ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def generated(name: str, base: Path, numbers: Iterable[int]) -> Iterator[tuple[int, Damage]]:
    """The damages of a format by number; each depends on its number alone."""
    form = load_format(name)
    for number in numbers:
        yield number, form.damage(random.Random(f"{name}/{number}"), base)


def corpus(name: str) -> list[tuple[str, Damage]]:
    """The findings of a format: one line ``{"name", "file", "steps"}`` each."""
    path = CORPUS / f"{name}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    records = [json.loads(line) for line in lines]
    return [(record["name"], Damage(record["file"], record["steps"])) for record in records]


def run_format(
    child: Child,
    name: str,
    cases: Callable[[Path], Iterable[tuple[int | str, Damage]]],
    on_case: Callable[[Case], None] | None = None,
) -> Tally:
    """Read every case; the whole input must come through first."""
    tally = Tally(name)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "whole"
        base.mkdir()
        child.ask({"format": name, "folder": str(base), "make": True})
        whole = child.ask({"format": name, "folder": str(base), "damage": None})
        if whole["outcome"] != "harmless":
            raise RuntimeError(f"the whole input of {name} does not come through: {whole}")
        for number, damage in cases(base):
            answer = child.ask({"format": name, "folder": str(base), "damage": damage.to_json()})
            case = Case(name, number, damage, **answer)
            tally.add(case)
            if on_case is not None:
                on_case(case)
    return tally
