"""Compare runs: the settings in which they differ and their scores side by side, their curves over each other."""

from __future__ import annotations

import argparse
import os
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base.border import read_object
from pipeline.base.files import write_json
from pipeline.base.run_folder import RunFolder
from pipeline.config import SettingsError, read_saved_settings, read_saved_values
from pipeline.drawing.curves import Curves, default_metrics, draw_curves
from pipeline.drawing.save import save_picture
from pipeline.tracking.local_log import read_curves
from pipeline.tracking.parameters import settings_as_text, value_as_text
from pipeline.tracking.scores import read_scores

ABSENT = "-"
MAX_CELL_WIDTH = 60
EXAMPLES = """examples:
  python -m pipeline.tracking.compare runs/stage1 runs/stage2
  python -m pipeline.tracking.compare runs/a runs/b --metric loss --metric fgt --out loss.png --json compare.json
  python -m pipeline.tracking.compare 1f0c8a… 92ab77… --uri sqlite:///runs/mlflow.db
"""


@dataclass
class RunView:
    """What a comparison needs of a run."""

    name: str
    settings: dict[str, str]
    curves: Curves
    scores: dict[str, float]
    versions: dict[str, str]


def load_run(run: str, uri: str | None) -> RunView:
    """A run folder (or its final/, or a checkpoint), else an MLflow run id in the store ``uri``.

    Raises:
        ValueError: it is neither.
    """
    if Path(run).is_dir():
        return _from_folder(Path(run))
    if os.sep in run:
        raise ValueError(f"run {run} is not there; give a run's folder or the id of an MLflow run")
    return _from_mlflow(run, uri or os.environ.get("MLFLOW_TRACKING_URI"))


def table_of(runs: Sequence[RunView]) -> list[tuple[str, list[str]]]:
    """Rows (name, a cell a run): differing settings and versions, last losses, scores; "" begins a section."""
    rows: list[tuple[str, list[str]]] = []
    settings = _rows([run.settings for run in runs], differing_only=True)
    versions = _rows([run.versions for run in runs], differing_only=True)
    names = default_metrics({name for run in runs for name in run.curves})
    last = [{name: f"{values[-1]:.4g}" for name, (_, values) in run.curves.items()} for run in runs]
    scores = _rows([{name: f"{value:.4f}" for name, value in run.scores.items()} for run in runs])
    sections = {
        "settings that differ": settings,
        "versions that differ": versions,
        "last step": [("step", [str(max((s[-1] for s, _ in run.curves.values()), default=ABSENT)) for run in runs])],
        "last values": [(name, [values.get(name, ABSENT) for values in last]) for name in names],
        "scores": scores,
    }
    for title, section in sections.items():
        if section:
            rows += [(title, []), *section]
    return rows


def format_table(names: Sequence[str], rows: Sequence[tuple[str, list[str]]]) -> str:
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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.tracking.compare",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, or id of an MLflow run")
    parser.add_argument("--uri", help="MLflow store of run ids (default: MLFLOW_TRACKING_URI)")
    parser.add_argument("--metric", action="append", metavar="NAME", help="a curve to draw; repeatable")
    parser.add_argument("--out", type=Path, default=Path("compare.png"), metavar="PNG", help="default: compare.png")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table for programs, too")
    arguments = parser.parse_args(argv)
    try:
        runs = _distinct([load_run(run, arguments.uri) for run in arguments.runs])
        rows = table_of(runs)
        print(format_table([run.name for run in runs], rows))
        if arguments.json:
            _write_json(arguments.json, runs, rows)
        curves = {run.name: run.curves for run in runs}
        if arguments.metric or any(curves.values()):
            print(f"\ncurves: {save_picture(draw_curves(curves, arguments.metric), arguments.out)}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _from_folder(folder: Path) -> RunView:
    run = RunFolder.containing(folder.resolve())
    settings = read_settings(run.settings)
    curves = read_curves(run.path) if run.metrics.is_file() else {}
    facts = read_object(run.versions) if run.versions.is_file() else {}
    return RunView(run.path.name, settings, curves, read_scores(run.path), _flat(facts))


def _from_mlflow(run_id: str, uri: str | None) -> RunView:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    from pipeline.tracking.store import quieten_mlflow

    quieten_mlflow()
    try:
        client = MlflowClient(uri)
        run = client.get_run(run_id)
        histories = {name: client.get_metric_history(run_id, name) for name in run.data.metrics}
    except MlflowException as error:
        raise ValueError(
            f"{run_id} is no folder, and the MLflow store {uri or 'of MLFLOW_TRACKING_URI (not set)'} says: "
            f"{' '.join(str(error).split())}; give a run's folder, or its id and --uri"
        ) from error
    curves, scores = {}, {}
    for name, points in histories.items():
        points = sorted(points, key=lambda point: (point.step, point.timestamp))
        if name.startswith("evaluation/"):
            scores[name.removeprefix("evaluation/").replace(".", "/")] = points[-1].value
        else:
            curves[name] = ([point.step for point in points], [point.value for point in points])
    versions = {n.removeprefix("version."): v for n, v in run.data.tags.items() if n.startswith("version.")}
    return RunView(run.info.run_name or run_id[:8], dict(run.data.params), curves, scores, versions)


def read_settings(path: Path) -> dict[str, str]:
    """Settings of a run by their full names, as they are named in MLflow; those of another version as they stand."""
    try:
        return settings_as_text(read_saved_settings(path))
    except SettingsError:
        return _flat(read_saved_values(path))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value_as_text(value)}
        )
    return flat


def _rows(columns: list[dict[str, str]], differing_only: bool = False) -> list[tuple[str, list[str]]]:
    names = sorted({name for column in columns for name in column})
    rows = [(name, [column.get(name, ABSENT) for column in columns]) for name in names]
    return [(name, cells) for name, cells in rows if not differing_only or len(set(cells)) > 1]


def _distinct(runs: list[RunView]) -> list[RunView]:
    """Two runs of one name (a/run, b/run) get a number, because names are the columns and the legend."""
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.name] = counts.get(run.name, 0) + 1
        if counts[run.name] > 1:
            run.name = f"{run.name} ({counts[run.name]})"
    return runs


def _write_json(path: Path, runs: Sequence[RunView], rows: Sequence[tuple[str, list[str]]]) -> None:
    record: dict[str, Any] = {"runs": [run.name for run in runs]}
    section: dict[str, list[str]] = {}
    for name, cells in rows:
        if not cells:
            section = record.setdefault(name, {})
        else:
            section[name] = cells
    write_json(path, record)


def _cut(text: str) -> str:
    while _width(text) > MAX_CELL_WIDTH:
        text = text.removesuffix("…")[:-1] + "…"
    return text


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _pad(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


if __name__ == "__main__":
    sys.exit(main())
