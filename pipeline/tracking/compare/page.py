"""A comparison as one HTML page: scores first, then curves, then what differs."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.drawing.page import Cell, cards, folded, html_page, section, table, warning
from pipeline.drawing.page_curves import curve_panels
from pipeline.drawing.sampling import sample_curves
from pipeline.tracking.compare.content import Comparison, Row
from pipeline.tracking.compare.text import ABSENT, DATA_WARNING, difference_text, legend_lines, value_text
from pipeline.tracking.metric_names import unit_of


def comparison_page(comparison: Comparison, half_life: float = 0.0) -> str:
    """The page.

    Args:
        half_life: of the smoothing of its curves, in logged steps; 0: none.
    """
    labels = [group.label for group in comparison.groups]
    names = comparison.curve_names
    lines = {
        group.label: sample_curves([run.curves for run in group.runs], names, half_life=half_life)
        for group in comparison.groups
    }
    panels = curve_panels(lines, names, {name: unit_of(name) for name in names}, half_life=half_life)
    main = comparison.main_scores()
    parts = [row for row in comparison.scores if row not in main]
    scores = _numbers("score", labels, main) + folded(
        f"{len(parts)} scores of parts of the sets", _numbers("score", labels, parts)
    )
    sections = [
        section("Scores", scores, ". ".join(_legend(comparison))),
        panels.html,
        section("Settings that differ", _texts("setting", labels, comparison.settings)),
        section("Data that differ", _texts("data", labels, comparison.data)),
        section("Last values", _numbers("metric", labels, comparison.metrics, ".4g")),
        section("Versions that differ", _texts("version", labels, comparison.versions)),
        section("Runs", _runs(comparison)),
    ]
    num_runs = sum(len(group.runs) for group in comparison.groups)
    facts = [("runs", str(num_runs)), ("groups", str(len(labels)))]
    facts += [("baseline", comparison.baseline.label)] if comparison.baseline else []
    head = cards(facts) + (warning(DATA_WARNING.removeprefix("warning: ").capitalize()) if comparison.data else "")
    title = f"{num_runs} runs compared" if num_runs > 1 else f"Run {labels[0]}"
    return html_page(title, head, sections, panels.scripts)


def _legend(comparison: Comparison) -> list[str]:
    """The terminal's legend in the signs of the page."""
    return [
        line.replace("in brackets", "small").replace("* is the best of a row", "the best of a row is bold")
        for line in legend_lines(comparison)
    ]


def _numbers(kind: str, labels: Sequence[str], rows: Sequence[Row], digits: str = ".4f") -> str:
    found = []
    for row in rows:
        cells = []
        for number, (value, against) in enumerate(zip(row.values, row.differences, strict=True)):
            note = difference_text(against, f"+{digits}")
            mean = value.mean if value else None
            cells.append(Cell(value_text(value, digits), mean, note, digits == ".4f" and number == row.best))
        found.append((f"{row.name}{f' [{row.unit}]' if row.unit else ''}", cells))
    return table([kind, *labels], found)


def _texts(kind: str, labels: Sequence[str], rows: Sequence[tuple[str, Sequence[str | None]]]) -> str:
    found = [(name, [Cell(ABSENT if cell is None else cell) for cell in cells]) for name, cells in rows]
    return table([kind, *labels], found)


def _runs(comparison: Comparison) -> str:
    rows = [
        (run.name, [Cell(group.label), Cell(run.seed or ABSENT), Cell(str(run.last_step or ABSENT)), Cell(run.place)])
        for group in comparison.groups
        for run in group.runs
    ]
    return table(["run", "group", "seed", "last step", "folder or MLflow id"], rows)
