"""A comparison on the terminal, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipeline.tracking.compare.content import Comparison, Row
from pipeline.tracking.compare.groups import Difference, Statistic
from pipeline.tracking.compare.runs import RunView

ABSENT = "-"
MAX_CELL_WIDTH = 60
FORMAT = 2  # of the JSON; 1 had one column a run
CSV_COLUMNS = (
    "section", "name", "unit", "group", "runs", "value", "standard_deviation", "difference", "standard_error", "pairs",
)  # fmt: skip
DATA_WARNING = (
    "warning: the runs were not trained on the same data; a difference of scores may be one of the data "
    "(see “data that differ”)"
)

TextRow = tuple[str, list[str]]


def value_text(value: Statistic | None, digits: str = ".4f") -> str:
    """``0.5620``, for several runs ``0.5620 ± 0.0031``."""
    if value is None:
        return ABSENT
    deviation = f" ± {value.deviation:{digits}}" if value.deviation is not None else ""
    return f"{value.mean:{digits}}{deviation}"


def difference_text(value: Difference | None, digits: str = "+.4f") -> str:
    """``+0.0120 ± 0.0020``; "" where there is none."""
    if value is None:
        return ""
    error = f" ± {value.error:{digits.removeprefix('+')}}" if value.error is not None else ""
    return f"{value.mean:{digits}}{error}"


def legend_lines(comparison: Comparison) -> list[str]:
    """What the signs mean, as far as they occur."""
    lines = []
    if any(len(group.runs) > 1 for group in comparison.groups):
        lines.append("n: runs that differ in their seed alone; ±: one standard deviation over them")
    if comparison.baseline is not None:
        counts = {
            d.pairs for row in [*comparison.scores, *comparison.metrics] for d in row.differences if d is not None
        }
        how = "pairs of equal seeds" if counts - {0} else "means, since no seeds are shared"
        several = " and ± one standard error" if counts - {0, 1} else ""
        lines.append(f"in brackets: difference to {comparison.baseline.label}, over {how}{several}")
    if comparison.sorted_by:
        lines.append(f"columns are sorted by {comparison.sorted_by}; * is the best of a row")
    return lines


def table_of(comparison: Comparison, everything: bool = False) -> list[TextRow]:
    """Rows (name, a cell a group); a row without cells begins a section."""
    scores = comparison.scores if everything else comparison.main_scores()
    hidden = len(comparison.scores) - len(scores)
    sections: list[tuple[str, list[TextRow]]] = [
        (f"scores{f' ({hidden} of parts of the sets: --all)' if hidden else ''}", [_cells(row) for row in scores]),
        ("last values", [_cells(row, ".4g") for row in comparison.metrics]),
        ("last step", [("step", [str(max(r.last_step or 0 for r in g.runs)) for g in comparison.groups])]),
        ("settings that differ", _texts(comparison.settings)),
        ("data that differ", _texts(comparison.data)),
        ("versions that differ", _texts(comparison.versions)),
    ]
    return [line for title, rows in sections if rows for line in [(title, list[str]()), *rows]]


def format_table(names: Sequence[str], rows: Sequence[TextRow]) -> str:
    """Text with aligned columns; a Chinese character is two columns wide."""
    cut = [(name, [_cut(cell) for cell in cells]) for name, cells in rows]
    first = max(_width(name) for name, _ in cut) + 2
    widths = [max([_width(name), *(_width(cells[n]) for _, cells in cut if cells)]) + 2 for n, name in enumerate(names)]
    lines = [_pad("", first) + "".join(_pad(name, width) for name, width in zip(names, widths, strict=True))]
    for name, cells in cut:
        if not cells:
            lines += ["", f"{name}"]
        else:
            lines.append(_pad(f"  {name}", first + 2) + "".join(_pad(c, w) for c, w in zip(cells, widths, strict=True)))
    lines[0] = "  " + lines[0]
    return "\n".join(line.rstrip() for line in lines)


def as_record(comparison: Comparison) -> dict[str, Any]:
    """The comparison for programs."""
    labels = [group.name for group in comparison.groups]

    def numbers(rows: Sequence[Row], value_name: str) -> dict[str, Any]:
        return {
            row.name: {
                "unit": row.unit,
                value_name: {
                    label: asdict(value) if value else None for label, value in zip(labels, row.values, strict=True)
                },
                "differences": {
                    label: asdict(d) for label, d in zip(labels, row.differences, strict=True) if d is not None
                },
            }
            for row in rows
        }

    def texts(rows: Sequence[tuple[str, list[str | None]]]) -> dict[str, Any]:
        return {name: dict(zip(labels, cells, strict=True)) for name, cells in rows}

    return {
        "format": FORMAT,
        "groups": [
            {
                "name": group.name,
                "runs": [_run_record(run) for run in group.runs],
            }
            for group in comparison.groups
        ],
        "baseline": comparison.baseline.name if comparison.baseline else None,
        "sorted_by": comparison.sorted_by,
        "scores": numbers(comparison.scores, "values"),
        "last_values": numbers(comparison.metrics, "values"),
        "settings_that_differ": texts(comparison.settings),
        "data_that_differ": texts(comparison.data),
        "versions_that_differ": texts(comparison.versions),
    }


def _run_record(run: RunView) -> dict[str, Any]:
    return {"name": run.name, "place": run.place, "seed": run.seed, "step": run.last_step, "scores": run.scores}


def as_csv(comparison: Comparison) -> str:
    """One line a value of a group; :data:`CSV_COLUMNS`."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for section, rows in (("score", comparison.scores), ("last value", comparison.metrics)):
        for row in rows:
            for group, value, against in zip(comparison.groups, row.values, row.differences, strict=True):
                if value is not None:
                    less = (against.mean, against.error, against.pairs) if against else (None, None, None)
                    writer.writerow(
                        [section, row.name, row.unit, group.name, value.count, value.mean, value.deviation, *less]
                    )
    for section, texts in (("setting", comparison.settings), ("data", comparison.data)):
        for name, cells in texts:
            for group, cell in zip(comparison.groups, cells, strict=True):
                writer.writerow([section, name, "", group.name, len(group.runs), cell, *[None] * 4])
    return stream.getvalue()


def _cells(row: Row, digits: str = ".4f") -> TextRow:
    cells = []
    for number, (value, against) in enumerate(zip(row.values, row.differences, strict=True)):
        less = difference_text(against, f"+{digits}")
        star = " *" if number == row.best and digits == ".4f" else ""
        cells.append(f"{value_text(value, digits)}{f' ({less})' if less else ''}{star}")
    return f"{row.name}{f' [{row.unit}]' if row.unit else ''}", cells


def _texts(rows: Sequence[tuple[str, list[str | None]]]) -> list[TextRow]:
    return [(name, [ABSENT if cell is None else cell for cell in cells]) for name, cells in rows]


def _cut(text: str) -> str:
    while _width(text) > MAX_CELL_WIDTH:
        text = text.removesuffix("…")[:-1] + "…"
    return text


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _pad(text: str, width: int) -> str:
    return text + " " * (width - _width(text))
