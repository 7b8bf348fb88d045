"""A suite's table: one row a score, one column a model, with the difference to the first; Markdown, LaTeX and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.results import flat_scores
from pipeline.evaluation.suites.specification import Suite, SuiteRow

ABSENT = "–"


@dataclass(frozen=True)
class Line:
    """One score of one row. ``values``: by model, None where there is none; ``note``: why."""

    row: str
    score: str
    values: tuple[float | None, ...]
    published: dict[str, float]
    note: str = ""


def lines_of(suite: Suite, models: Sequence[str], results: dict[tuple[str, str], dict[str, Any]]) -> list[Line]:
    """The table's lines. ``results``: by (row, model), each with ``scores`` or ``problem``."""
    lines = []
    for row in suite.rows:
        of_row = [results.get((row.name, model), {}) for model in models]
        scores = [flat_scores(one.get("scores", {})) for one in of_row]
        note = _note(row, of_row)
        known = [*scores, *row.published.values()]
        names = row.scores or tuple(dict.fromkeys(name for one in known for name in one)) or ("",)
        shown = [name for name in names if any(name in one for one in known)] or list(names[:1])
        for name in shown:
            published = {model: values[name] for model, values in row.published.items() if name in values}
            lines.append(Line(row.name, name, tuple(one.get(name) for one in scores), published, note))
    return lines


def _note(row: SuiteRow, of_row: list[dict[str, Any]]) -> str:
    if row.missing:
        return f"{row.missing[0]} is missing" + (f"; published at {row.where}" if row.where else "")
    return next((str(one["problem"]) for one in of_row if "problem" in one), "")


def cell(value: float | None, first: float | None, is_first: bool) -> str:
    """``52.3 (+1.2)``: percent, and the difference to the first model in points."""
    if value is None:
        return ABSENT
    if is_first or first is None:
        return f"{100 * value:.1f}"
    return f"{100 * value:.1f} ({100 * (value - first):+.1f})"


def cells(line: Line, papers: Sequence[str]) -> list[str]:
    """A line's cells: row, score, a cell a model, a cell a published model."""
    values = [cell(value, line.values[0], number == 0) for number, value in enumerate(line.values)]
    return [line.row, line.score, *values, *(cell(line.published.get(paper), None, True) for paper in papers)]


def papers_of(lines: Sequence[Line]) -> list[str]:
    """The models with published numbers in the table."""
    return list(dict.fromkeys(paper for line in lines for paper in line.published))


def markdown(suite: Suite, models: Sequence[str], lines: Sequence[Line]) -> str:
    """The table, and below it what is missing and why."""
    papers = papers_of(lines)
    head = ["set", "score", *models, *(f"{paper} (published)" for paper in papers)]
    rows = ["| " + " | ".join(_bar(one) for one in head) + " |", "|" + "---|" * len(head)]
    rows += ["| " + " | ".join(_bar(one) for one in cells(line, papers)) + " |" for line in lines]
    notes = list(dict.fromkeys(f"- {line.row}: {line.note}" for line in lines if line.note))
    return "\n".join([f"## {suite.name}", "", *rows, *(["", *notes] if notes else []), ""])


def latex(suite: Suite, models: Sequence[str], lines: Sequence[Line]) -> str:
    """A ``tabular`` for booktabs."""
    papers = papers_of(lines)
    head = ["set", "score", *models, *(f"{paper} (published)" for paper in papers)]
    body = [" & ".join(_escaped(one) for one in cells(line, papers)) + r" \\" for line in lines]
    columns = "ll" + "r" * (len(head) - 2)
    return "\n".join(
        [
            f"% {suite.name}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(_escaped(one) for one in head) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def as_json(suite: Suite, models: Sequence[str], lines: Sequence[Line]) -> dict[str, Any]:
    """The lines as numbers, fractions as they are."""
    return {
        "suite": suite.name,
        "models": list(models),
        "lines": [
            {
                "row": line.row,
                "score": line.score,
                "values": dict(zip(models, line.values, strict=True)),
                "published": line.published,
                "note": line.note,
            }
            for line in lines
        ],
    }


def _bar(text: str) -> str:
    return text.replace("|", "\\|")


def _escaped(text: str) -> str:
    for character in ("\\", "&", "%", "$", "#", "_", "{", "}"):
        text = text.replace(character, r"\textbackslash{}" if character == "\\" else f"\\{character}")
    return text
