"""How long pages of long runs take to open in a headless Chromium: MLflow's page of a run, and that of a comparison.

The runs are made up: random walks under the names of real metrics. MLflow's page counts as open when its list of
metrics is there, and its charts when the first of them is drawn.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reporting import Row, benchmark_parser, report
from pipeline.base.commands import run_command
from pipeline.base.run_folder import RunFolder

START = 1.7e9  # seconds since 1970 of the first step
STEP_SECONDS = 2.0
EXAMPLE = "  python -m benchmarks.pages --steps 1000 --runs 4      # in a minute\n"
PER_WRITE = 500  # steps


def metric_names(count: int) -> list[str]:
    """Names in the groups of a real run; the first are those that a run of stage 2 has."""
    names = ["loss/total", "loss/global_short", "loss/global_long", "loss/fgv", "loss/fgt", "loss/cmr", "loss/tic",
             "region/cmr_margin", "region/true_beats_altered", "health/gradient_norm", "health/learning_rate",
             "speed/step_seconds", "speed/images_per_second", "speed/samples_seen", "data/wait_share"]  # fmt: skip
    groups = ("loss", "region", "health", "speed", "data")
    return [*names, *(f"{groups[n % len(groups)]}/made_up_{n}" for n in range(len(names), count))][:count]


def walks(names: list[str], steps: int, seed: int) -> np.ndarray:
    """Values [steps, metrics]."""
    draws = np.random.default_rng(seed)
    falls = 2 + 8 * np.exp(-np.arange(steps) / (0.2 * steps))
    return falls[:, None] + 0.05 * np.cumsum(draws.normal(size=(steps, len(names))), axis=0) / math.sqrt(steps) * 10


def entries(names: list[str], steps: int, seed: int) -> Iterator[Any]:
    from pipeline.tracking.local_log import Entry

    for step, row in enumerate(walks(names, steps, seed), start=1):
        yield Entry(step, START + STEP_SECONDS * step, dict(zip(names, map(float, row), strict=True)))


def of_mlflow(arguments: argparse.Namespace, opened: Any, stack: ExitStack) -> Iterator[Row]:
    """A run in sqlite, and its page."""
    from pipeline.config import Stage1Settings, load_settings
    from pipeline.tracking.address import page_of, run_address
    from pipeline.tracking.parameters import run_tags, settings_as_text
    from pipeline.tracking.store import Store
    from tests.tracking.served_store import served_store

    folder = arguments.folder.absolute()
    settings = load_settings(Stage1Settings, None, [f"tracking.uri=sqlite:///{folder / 'mlflow.db'}"])
    address = run_address(settings, folder / "long")
    store = Store.connect(address, None, settings_as_text(settings), run_tags(settings, folder / "long"))
    begun, waiting = time.perf_counter(), []
    for entry in entries(metric_names(arguments.metrics), arguments.steps, seed=0):
        waiting.append(entry)
        if len(waiting) == PER_WRITE or entry.step == arguments.steps:
            store.write(waiting)
            waiting = []
    yield Row("mlflow_written_in", time.perf_counter() - begun, "s")
    store.terminate("FINISHED")
    server = stack.enter_context(served_store(folder, folder / "mlflow.db"))
    experiment = store.client.get_run(store.run_id).info.experiment_id
    _, page = page_of(address, experiment, store.run_id)
    page = server + page[page.index("/#/") :]
    charts = page.replace("?", "/model-metrics?")
    for name, place, sign in (("overview", page, "text=loss/total"), ("charts", charts, ".js-plotly-plot .trace")):
        seconds = [_opened(opened, place, sign, arguments.screenshots, f"{name}-{n}") for n in range(arguments.repeats)]
        yield Row(f"mlflow_{name}_first", seconds[0], "s")
        yield Row(f"mlflow_{name}_median", statistics.median(seconds), "s")


def of_comparison(arguments: argparse.Namespace, opened: Any) -> Iterator[Row]:
    """The page of several runs: with the metrics that are shown by default, and with all."""
    from pipeline.tracking.compare.__main__ import main as compare
    from tests.tracking.made_runs import make_run

    runs = arguments.folder / "runs"
    for number in range(arguments.runs):
        run = runs / f"way{number // 3}-seed{number % 3}"
        if not run.exists():
            weight = f"region_loss.cmr_weight={number // 3 / 10}"
            make_run(run, weight, seed=number % 3, scores={"scenes": {"hard": 0.5 + number / 100}})
            with open(RunFolder.at(run).metrics, "w", encoding="utf-8") as file:
                file.writelines(
                    one.to_line() for one in entries(metric_names(arguments.metrics), arguments.steps, number)
                )
    for name, more in (("usual", []), ("all", ["--all"])):
        page = arguments.folder / f"compare-{name}.html"
        begun = time.perf_counter()
        if compare([str(runs), "--html", str(page), *more]):
            raise ValueError("the comparison failed; see above")
        yield Row(f"compare_{name}_made_in", time.perf_counter() - begun, "s")
        yield Row(f"compare_{name}_size", page.stat().st_size / 1e6, "MB", 5.0)
        place = page.absolute().as_uri()
        seconds = [_opened(opened, place, ".bk-Figure", None, "") for _ in range(arguments.repeats)]
        yield Row(f"compare_{name}_median", statistics.median(seconds), "s")


def _opened(opened: Any, address: str, sign: str, screenshots: Path | None, name: str) -> float:
    """Seconds from the request until ``sign`` is seen, in a browser that has kept nothing."""
    context = opened.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    begun = time.perf_counter()
    page.goto(address)
    page.locator(sign).first.wait_for(state="visible", timeout=120_000)
    seconds = time.perf_counter() - begun
    if screenshots is not None:
        page.screenshot(path=screenshots / f"{name}.png")
    context.close()
    return seconds


def main(argv: list[str] | None = None) -> int:
    parser = benchmark_parser("benchmarks.pages", __doc__ or "", EXAMPLE)
    add = parser.add_argument
    add("--folder", type=Path, default=Path("runs/benchmark-pages"), help="runs and store (default: %(default)s)")
    add("--steps", type=int, default=10_000, help="logged steps of a run (default: 10000)")
    add("--metrics", type=int, default=60, help="of a step (default: 60)")
    add("--runs", type=int, default=12, help="of the comparison (default: 12)")
    add("--repeats", type=int, default=5, help="times that a page is opened (default: 5)")
    add("--screenshots", type=Path, metavar="FOLDER", help="keep a picture of each time")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _measure(arguments), (ValueError, OSError))


def _measure(arguments: argparse.Namespace) -> int:
    from tests.browser.chromium import browser, executable

    if executable() is None:
        raise ValueError("there is no Chromium on this machine; install it, or set CHROMIUM to its path")
    if (arguments.folder / "mlflow.db").exists():
        raise ValueError(f"{arguments.folder} holds an earlier measurement; remove it, or give another --folder")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with browser() as opened, ExitStack() as stack:
        rows = [*of_mlflow(arguments, opened, stack), *of_comparison(arguments, opened)]
    report(rows, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
