"""What every benchmark shares: a table on the terminal, the same rows as JSON, and repeated timing.

A row is ``{"name", "value", "unit", "baseline", "ratio"}``: ``baseline`` is what the value is compared with, in the
same unit, and ``ratio`` is value / baseline; both are null where there is nothing to compare with.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.base.files import write_json


@dataclass(frozen=True)
class Row:
    """One measured number. ``ratio`` is filled from the baseline where it is not given."""

    name: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        if self.ratio is None and self.baseline:
            object.__setattr__(self, "ratio", self.value / self.baseline)


def benchmark_parser(program: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """A parser with the ``--json FILE`` that all benchmarks take; ``program`` is the module's name."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description=description,
        epilog=f"example:\n  python -m {program} --json results.json\n{epilog}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE as JSON")
    return parser


def measure_seconds(
    work: Callable[[], object], repeats: int = 3, warmups: int = 1, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Median seconds of ``work()`` over ``repeats`` calls after ``warmups`` that do not count.

    ``clock``: ``time.perf_counter`` for wall-clock seconds; ``time.process_time`` for those of the process on its
    cores, which tell more on one thread of a machine that others use at the same time.
    """
    for _ in range(warmups):
        work()
    seconds = []
    for _ in range(repeats):
        start = clock()
        work()
        seconds.append(clock() - start)
    return statistics.median(seconds)


def format_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, so that it can be pasted into the documents as it is."""
    cells = [("name", "value", "unit", "baseline", "ratio")]
    cells += [(row.name, _number(row.value), row.unit, _number(row.baseline), _number(row.ratio)) for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def report(rows: Sequence[Row], json_file: Path | None = None) -> None:
    """Print the table; with ``json_file``, write the rows there too."""
    print(format_table(rows), flush=True)
    write_rows(rows, json_file)


def write_rows(rows: Sequence[Row], json_file: Path | None) -> None:
    """The rows so far, where a file is asked for: a long program that is stopped has them."""
    if json_file is not None:
        write_json(json_file, [asdict(row) for row in rows])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
