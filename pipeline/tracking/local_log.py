"""``metrics.jsonl``: a run's own record of its metrics, one line a logged step, kept whatever happens to MLflow.

A line is ``{"step": 120, "time": 1700000000.0, "values": {"loss/total": 3.1, …}}``; numbers that JSON has no word for
are the strings "nan", "inf" and "-inf". For every name the steps strictly ascend, so a curve holds each step once.
Names are those of ``metric_names``; files of earlier versions are read under them, too.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from pipeline.base.border import read_lines
from pipeline.base.files import set_aside, write_aside
from pipeline.base.run_folder import METRICS
from pipeline.tracking.metric_names import grouped_metrics

MAX_LINE_BYTES = 1 << 20  # assumption: a hundred times the longest line of a run
MAX_TIME = 1e11  # seconds since 1970; MLflow keeps milliseconds in 64 bits
MAX_NAME = 1000  # characters of a metric's name


@dataclass(frozen=True)
class Entry:
    """Metrics of one step. ``time`` is in seconds since 1970."""

    step: int
    time: float
    values: dict[str, float]

    def to_line(self) -> str:
        values = {name: value if math.isfinite(value) else str(value) for name, value in self.values.items()}
        return json.dumps({"step": self.step, "time": self.time, "values": values}, ensure_ascii=False) + "\n"


def read_entries(run_folder: str | Path) -> Iterator[Entry]:
    """The entries of a run; a last line torn by a kill is left out. Raises FileNotFoundError where there are none."""
    for line in read_lines(Path(run_folder) / METRICS, MAX_LINE_BYTES):
        entry = _parse(line)
        if entry is not None:
            yield entry


def read_curves(run_folder: str | Path) -> dict[str, tuple[list[int], list[float]]]:
    """``{name: (steps, values)}`` of a run."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for entry in read_entries(run_folder):
        for name, value in entry.values.items():
            steps, values = curves.setdefault(name, ([], []))
            steps.append(entry.step)
            values.append(value)
    return curves


@dataclass(frozen=True)
class _Line:
    step: Annotated[int, Field(strict=True, ge=0, le=2**53)]
    time: Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0, le=MAX_TIME)]
    values: dict[Annotated[str, Field(max_length=MAX_NAME)], float]


_LINE: TypeAdapter[_Line] = TypeAdapter(_Line)


def _parse(line: bytes) -> Entry | None:
    """None for a line that is torn or damaged, by a full disk for instance: that costs the line, not the run."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = _LINE.validate_json(line)
    except ValidationError:
        return None
    return Entry(record.step, record.time, grouped_metrics(record.values))


@dataclass
class LocalLog:
    """Appends entries; lines that a full disk refuses are kept in memory and written when there is room again."""

    run_folder: Path
    highest: dict[str, int] = field(default_factory=dict)  # last step of each name
    waiting: list[str] = field(default_factory=list)
    _size: int = 0  # bytes of whole lines in the file
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, run_folder: str | Path, keep_up_to_step: int | None) -> LocalLog:
        """Go on in a run's file.

        Args:
            keep_up_to_step: steps above it are cut off, because the resumed run makes them again. None starts a new
                file; one that is there is set aside as metrics.1.jsonl, metrics.2.jsonl, ….

        Raises:
            OSError: the folder cannot be written.
        """
        run_folder = Path(run_folder)
        run_folder.mkdir(parents=True, exist_ok=True)
        path = run_folder / METRICS
        log = cls(run_folder)
        if keep_up_to_step is None:
            if path.exists() and path.stat().st_size:
                set_aside(path)
        elif path.exists():
            with write_aside(path) as partial, open(partial, "w", encoding="utf-8") as kept:
                for logged in read_entries(run_folder):
                    entry = log.fresh(logged)
                    if entry is not None and entry.step <= keep_up_to_step:
                        log._remember(entry)
                        kept.write(entry.to_line())
            log._size = path.stat().st_size
        path.touch()  # a run that has logged nothing yet has none, which is no fault of the disk
        return log

    def fresh(self, entry: Entry) -> Entry | None:
        """``entry`` without the values whose step was logged already; None when nothing is left."""
        values = {name: v for name, v in entry.values.items() if entry.step > self.highest.get(name, -1)}
        return Entry(entry.step, entry.time, values) if values else None

    def append(self, entry: Entry) -> None:
        """Write an entry that :meth:`fresh` returned. Never raises for the disk: the line then waits in memory."""
        self._remember(entry)
        with self._lock:
            self.waiting.append(entry.to_line())
        self.flush()

    def flush(self) -> OSError | None:
        """Write what waits; the error when the disk still refuses it."""
        with self._lock:
            return self._write_waiting()

    def _write_waiting(self) -> OSError | None:
        if not self.waiting:
            return None
        data = "".join(self.waiting).encode("utf-8")
        try:
            with open(self.run_folder / METRICS, "ab") as file:
                if file.tell() > self._size:  # a write cut short by a full disk left part of a line
                    file.truncate(self._size)
                self._size = min(self._size, file.tell())  # the file may have been removed meanwhile
                file.write(data)
        except OSError as error:
            return error
        self._size += len(data)
        self.waiting.clear()
        return None

    def _remember(self, entry: Entry) -> None:
        for name in entry.values:
            self.highest[name] = entry.step
