"""Compare any number of runs: scores first, then what differs; seeds fall together; a table, JSON, CSV or a page.

Runs are folders (of a run, or a folder of runs), ids of MLflow runs, or what --experiment, --parent and --filter find.
Runs whose settings differ in the seed alone are one group: mean ± standard deviation, n.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.base.commands import command_parser, run_command
from pipeline.base.files import write_json, write_text
from pipeline.tracking.compare.content import Comparison, compare_groups
from pipeline.tracking.compare.groups import find_baseline, group_runs
from pipeline.tracking.compare.selection import Selection, select_runs
from pipeline.tracking.compare.text import DATA_WARNING, as_csv, as_record, format_table, legend_lines, table_of
from pipeline.tracking.metric_names import grouped_name

EXAMPLES = """examples:
  python -m pipeline.tracking.compare runs/stage1 runs/stage2
  python -m pipeline.tracking.compare runs/seeds --baseline without-cmr --html compare.html
  python -m pipeline.tracking.compare runs/a runs/b --metric loss/fgt --metric health/ --json compare.json --csv c.csv
  python -m pipeline.tracking.compare 1f0c8a… 92ab77… --uri sqlite:///runs/mlflow.db
  python -m pipeline.tracking.compare --experiment fine-grained-vlm --filter "params.`train.seed` = '0'" --uri http://…
  python -m pipeline.tracking.compare --parent ablation --baseline all-losses --ignore model.start_from
"""


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    return run_command(lambda: _compare(arguments), (ValueError, OSError))


def _compare(arguments: argparse.Namespace) -> int:
    chosen = Selection(arguments.runs, arguments.uri, arguments.experiment, arguments.parent, arguments.filter)
    metrics = arguments.metric or []
    reads_all = arguments.all or any(name.endswith("/") for name in metrics)
    runs = select_runs(chosen, None if reads_all else [grouped_name(name) for name in metrics])
    groups = group_runs(runs, arguments.ignore, arguments.apart)
    comparison = compare_groups(
        groups,
        baseline=find_baseline(groups, arguments.baseline) if arguments.baseline else None,
        metrics=arguments.metric,
        everything=arguments.all,
        sort_by=arguments.sort,
        ignored=arguments.ignore,
    )
    if comparison.data:
        print(f"{DATA_WARNING}\n")
    print(format_table([group.label for group in comparison.groups], table_of(comparison, arguments.all)))
    print("".join(f"\n{line}" for line in legend_lines(comparison)))
    _write(arguments, comparison)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m pipeline.tracking.compare", __doc__, EXAMPLES)
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="run folder, folder of runs, or id of an MLflow run")
    add("--uri", help="MLflow store of ids and searches (default: MLFLOW_TRACKING_URI)")
    add("--experiment", metavar="NAME", help="the runs of an MLflow experiment")
    add("--parent", metavar="NAME", help="the runs of a study (tracking.group), by its name or its parent's id")
    add("--filter", metavar="EXPRESSION", help="MLflow's search, as metrics.`loss/total` < 3")
    add("--baseline", metavar="RUN", help="a run or group that the others are compared with, by equal seeds")
    add("--ignore", action="append", default=[], metavar="SETTING", help="sets no runs apart, as the seed; repeatable")
    add("--apart", action="store_true", help="every run is a column of its own")
    add("--sort", metavar="SCORE", help="the score by which columns are sorted (default: the first of a whole set)")
    add("--metric", action="append", metavar="NAME", help="a metric, or a group as health/, instead of the first ones")
    add("--all", action="store_true", help="every metric, and scores of parts of the sets")
    add("--smooth", type=float, default=0.0, metavar="STEPS", help="half-life of an average of the page's curves, in "
        "logged steps (default: 0, none)")  # fmt: skip
    add("--html", type=Path, metavar="FILE", help="write one page that needs no network")
    add("--json", type=Path, metavar="FILE", help="write the comparison for programs")
    add("--csv", type=Path, metavar="FILE", help="write one line a value, for a spreadsheet")
    add("--out", type=Path, metavar="PNG", help="draw the curves of every run")
    return parser


def _write(arguments: argparse.Namespace, comparison: Comparison) -> None:
    """The files that were asked for."""
    if arguments.json:
        write_json(arguments.json, as_record(comparison))
    if arguments.csv:
        write_text(arguments.csv, as_csv(comparison))
    if arguments.html:
        from pipeline.tracking.compare.page import comparison_page  # Bokeh takes a second to import

        text = comparison_page(comparison, half_life=arguments.smooth)
        write_text(arguments.html, text)
        print(f"page: {arguments.html} ({len(text.encode('utf-8')) / 1e6:.1f} MB)")
    if arguments.out:
        from pipeline.drawing.curves import draw_curves  # matplotlib takes a second to import
        from pipeline.drawing.save import save_picture

        curves = {run.name: run.curves for group in comparison.groups for run in group.runs}
        print(f"curves: {save_picture(draw_curves(curves, comparison.curve_names), arguments.out)}")


if __name__ == "__main__":
    sys.exit(main())
