"""The page of a run, section by section."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence

from pipeline.base.run_folder import RunFolder
from pipeline.checkpoint.record import CheckpointError, read_record
from pipeline.data.manifest import IndexProblem
from pipeline.drawing.page import Cell, cards, folded, html_page, section, table, warning
from pipeline.drawing.page_curves import curve_panels
from pipeline.drawing.sampling import sample_curves
from pipeline.report.history import History, read_history
from pipeline.report.pictures import learning, mistakes, of_evaluation, step_images
from pipeline.tracking.compare.runs import RunView, runs_of_folder
from pipeline.tracking.data_sets import shard_set
from pipeline.tracking.local_log import Entry, read_entries
from pipeline.tracking.metric_names import in_reading_order, is_first, unit_of

PART = re.compile(r"^(?P<task>.*?)/?(?:by_language/(?P<language>[^/]+)|(?P<part>seen|unseen))/(?P<score>.+)$")
ABSENT = "-"
SPEEDS = ("images_per_second", "step_seconds", "tokens_per_second", "model_flops_used", "device_memory_gigabytes")


def run_page(run: RunFolder, half_life: float = 0.0) -> str:
    """The report of a run's folder as HTML.

    Args:
        half_life: of the smoothing of its curves, in logged steps; 0: none.

    Raises:
        ValueError, OSError: no run is there, or what it left cannot be read.
    """
    [view] = runs_of_folder(run.path)
    entries = list(read_entries(run.path)) if run.metrics.is_file() else []
    history = read_history(run, entries)
    names = in_reading_order(view.curves)
    first = [name for name in names if is_first(name)] or names
    units = {name: unit_of(name) for name in names}
    lines = {view.name: sample_curves([view.curves], first, half_life=half_life)}
    panels = curve_panels(lines, first, units, events=history.shown, half_life=half_life)
    images = step_images(run)
    sections = [
        section("What was trained on what", _what(view)),
        section(
            "Scores", _scores(view.scores), "Fractions, but for validation losses. One row a score; - is not measured."
        ),
        panels.html,
        section("What happened", _events(history), "The dashed lines in the curves stand at these steps."),
        section(
            "What it still gets wrong",
            mistakes(images),
            "Boxes with the phrases that the model confuses; bars are shares.",
        ),
        section("What it learned", learning(images), "The same images at the first and at the last time of drawing."),
        section("Pictures of evaluations", of_evaluation(run)),
        section("Health", _last_values(view, "health/", "region/")),
        section("Speed", _speed(entries)),
        section("Cost", _cost(run, view, entries)),
        section("Settings and versions", _settings(view)),
    ]
    head = cards(_facts(view, history, entries)) + _warnings(history)
    return html_page(f"Run {view.name}", head, sections, panels.scripts)


def _facts(view: RunView, history: History, entries: Sequence[Entry]) -> list[tuple[str, str]]:
    last = _last(entries)
    facts = [("state", history.status), ("last logged step", f"{view.last_step or 0:,}")]
    if "speed/samples_seen" in last:
        facts.append(("images seen", f"{last['speed/samples_seen']:,.0f}"))
    if "speed/training_hours" in last:
        facts.append(("training", f"{last['speed/training_hours']:.2f} h"))
    if "loss/total" in last:
        facts.append(("last loss", f"{last['loss/total']:.4g}"))
    return [*facts, ("starts", str(history.starts))]


def _warnings(history: History) -> str:
    words = []
    if history.skipped:
        words.append(f"{history.skipped:,} updates were skipped because a loss or gradient was not finite.")
    if history.replaced:
        total = sum(history.replaced.values())
        words.append(f"{total:,} damaged samples were replaced ({', '.join(sorted(history.replaced))}).")
    return warning(" ".join(words)) if words else ""


def _what(view: RunView) -> str:
    chosen = view.settings
    rows = [
        ("starts from", chosen.get("model.start_from", ABSENT).replace("None", "random weights")),
        ("model", chosen.get("model.preset", ABSENT)),
        ("images a step", chosen.get("train.global_batch_size", ABSENT)),
        ("peak learning rate", chosen.get("optimizer.peak_learning_rate", ABSENT)),
        ("precision", chosen.get("train.precision", ABSENT)),
        ("seed", view.seed or ABSENT),
        ("code", view.versions.get("git_revision", ABSENT)),
        ("folder", view.place),
    ]
    if chosen.get("model.start_from") not in (None, "None"):
        rows.pop(1)
    facts = table(["", "of this run"], [(name, [Cell(value)]) for name, value in rows], sortable=False)
    return facts + _data(view)


def _data(view: RunView) -> str:
    """The training shards as they are now; a folder that is gone is named without counts."""
    folders = re.findall(r'"([^"]+)"', view.settings.get("data.shards", ""))
    rows = []
    for folder in folders:
        try:
            counts: Mapping[str, int] = shard_set(folder).counts
        except (IndexProblem, OSError):
            counts = {}
        told = [f"{counts[n]:,}" if n in counts else ABSENT for n in ("samples", "regions", "negatives")]
        by_language = [f"{n.removeprefix('samples_')} {c:,}" for n, c in counts.items() if n.startswith("samples_")]
        rows.append((folder, [*map(Cell, told), Cell(", ".join(by_language) or ABSENT)]))
    head = ["training data", "images", "regions", "negatives", "by language"]
    return f"<h3>Data</h3>{table(head, rows, sortable=False)}" if rows else ""


def _scores(scores: Mapping[str, float]) -> str:
    """A row a score; its value on the whole set, by language, and on seen and unseen combinations."""
    rows: dict[str, dict[str, float]] = {}
    for name, value in scores.items():
        match = PART.match(name)
        if match:
            whole = "/".join(part for part in (match["task"], match["score"]) if part)
            rows.setdefault(whole, {})[match["language"] or match["part"]] = value
        else:
            rows.setdefault(name, {})["all"] = value
    columns = sorted({c for row in rows.values() for c in row}, key=lambda c: (c != "all", c in ("seen", "unseen"), c))
    cells = [
        (name, [Cell(f"{row[c]:.4f}", row[c]) if c in row else Cell(ABSENT) for c in columns])
        for name, row in sorted(rows.items())
    ]
    return table(["score", *columns], cells)


def _events(history: History) -> str:
    rows = [(f"step {event.step:,}", [Cell(event.text)]) for event in history.events]
    rows += [
        ("in all", [Cell(f"{count:,} samples replaced: {name}")]) for name, count in sorted(history.replaced.items())
    ]
    if not rows:
        return "<p>Nothing: no restart, no skipped update, no failure, no damaged sample.</p>"
    return table(["when", "what"], rows, sortable=False)


def _last_values(view: RunView, *groups: str) -> str:
    rows = []
    for name in in_reading_order(name for name in view.curves if name.startswith(groups)):
        values = list(view.curves[name][1])
        rows.append((name, [Cell(f"{v:.4g}", v) for v in (values[-1], min(values), max(values))]))
    shown = table(["metric", "last", "least", "greatest"], rows[:8])
    return shown + folded(f"{len(rows) - 8} more", table(["metric", "last", "least", "greatest"], rows[8:]))


def _speed(entries: Sequence[Entry]) -> str:
    rows = []
    for what in (*SPEEDS, "wait_share"):
        name = f"{'data' if what == 'wait_share' else 'speed'}/{what}"
        values = [entry.values[name] for entry in entries[1:] if name in entry.values]  # the first step warms up
        if values:
            unit = unit_of(name)
            numbers = (statistics.median(values), min(values), max(values))
            rows.append((f"{name}{f' [{unit}]' if unit else ''}", [Cell(f"{v:.4g}", v) for v in numbers]))
    return table(["speed", "median", "least", "greatest"], rows, sortable=False)


def _cost(run: RunFolder, view: RunView, entries: Sequence[Entry]) -> str:
    last = _last(entries)
    hours, images = last.get("speed/training_hours"), last.get("speed/samples_seen")
    if hours is None:
        return ""
    world_size = _world_size(run)
    rows = [("training hours", f"{hours:.3f}")]
    if world_size:
        rows += [("processes, one a device", str(world_size)), ("device hours", f"{hours * world_size:.3f}")]
        if images:
            rows.append(("device hours for a million images", f"{hours * world_size / images * 1e6:.2f}"))
    if flops := last.get("speed/training_flops"):
        rows.append(("floating-point operations", f"{flops:.3g}"))
    return table(["", view.name], [(name, [Cell(text)]) for name, text in rows], sortable=False)


def _world_size(run: RunFolder) -> int | None:
    """Of the newest checkpoint; None where none is left."""
    for checkpoint in sorted(run.checkpoints.glob("step-*"), reverse=True):
        try:
            return read_record(checkpoint).world_size
        except CheckpointError:
            continue
    return None


def _settings(view: RunView) -> str:
    settings = table(["setting", "value"], [(n, [Cell(v)]) for n, v in sorted(view.settings.items())])
    versions = table(["package", "version"], [(n, [Cell(v)]) for n, v in sorted(view.versions.items())])
    return folded(f"{len(view.settings)} settings", settings) + folded(f"{len(view.versions)} versions", versions)


def _last(entries: Sequence[Entry]) -> dict[str, float]:
    """The newest value of every metric."""
    found: dict[str, float] = {}
    for entry in entries:
        found |= entry.values
    return found
