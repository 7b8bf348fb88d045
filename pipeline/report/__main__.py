"""Write one page about a run: what was trained on what, curves with what happened, scores, pictures, speed and cost.

The page needs no network and can be mailed. It is also kept beside the run in MLflow, where that answers.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.base.border import one_line
from pipeline.base.commands import command_parser, run_command
from pipeline.base.files import write_text
from pipeline.base.run_folder import RunFolder

EXAMPLES = """examples:
  python -m pipeline.report runs/stage2
  python -m pipeline.report runs/stage2 --out stage2.html --smooth 20
"""
FILE, ARTIFACTS = "report.html", "report"


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("python -m pipeline.report", __doc__, EXAMPLES)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or anything in it")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/report.html")
    parser.add_argument("--smooth", type=float, default=0.0, metavar="STEPS", help="half-life of an average of the "
                        "curves, in logged steps (default: 0, none)")  # fmt: skip
    parser.add_argument("--no-mlflow", action="store_true", help="do not keep the page in MLflow")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _write_page(arguments), (ValueError, OSError))


def _write_page(arguments: argparse.Namespace) -> int:
    from pipeline.report.page import run_page  # Bokeh and MLflow take seconds to import, and --help needs neither

    run = RunFolder.containing(arguments.run.resolve())
    out = arguments.out or run.path / FILE
    text = run_page(run, arguments.smooth)
    write_text(out, text)
    print(f"report: {out} ({len(text.encode('utf-8')) / 1e6:.1f} MB)")
    if not arguments.no_mlflow:
        _keep(run, out)
    return 0


def _keep(run: RunFolder, page: Path) -> None:
    """Put the page among the artifacts of the run's MLflow page and say where it is shown."""
    from pipeline.tracking.address import find_run  # MLflow takes seconds to import
    from pipeline.tracking.store import STORE_ERRORS, Store

    try:
        found = find_run(run.path)
        if found is None or found[1] is None:
            print("MLflow: the run is in no store, so the page is on disk alone", file=sys.stderr)
            return
        store = Store.connect(found[2], found[1], {}, {}, status=None)
        store.log_artifact(page, ARTIFACTS)
        command, address = store.page()
    except STORE_ERRORS as error:
        print(f"MLflow: the page is on disk alone: {one_line(error)}", file=sys.stderr)
        return
    before, mark, query = address.partition("?")
    shown = f"  (shown by: {command})" if command else ""
    print(f"MLflow: {before}/artifacts/{ARTIFACTS}/{page.name}{mark}{query}{shown}")


if __name__ == "__main__":
    sys.exit(main())
