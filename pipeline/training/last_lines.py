"""What a run says at its end: what is there, how it scored, where it is shown, and what to do next."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path

from pipeline.base.run_folder import RunFolder
from pipeline.tracking.metric_names import grouped_metrics, in_reading_order, is_first
from pipeline.tracking.scores import read_scores

MOST_SCORES = 6


def last_lines(
    folder: Path, status: int, step: int, total_steps: int, metrics: Mapping[str, float], page: str | None
) -> list[str]:
    """Lines for the terminal; the last one is what to do next.

    Args:
        status: that of the run: 0, or 128 plus the number of the signal that stopped it.
        metrics: of the last logged step.
        page: where the run is shown; None without a store.
    """
    run = RunFolder.at(folder)
    shown = [f"tracking: {page}"] if page else []
    if status:
        name = {signal.SIGINT: "Ctrl-C"}.get(signal.Signals(status - 128), signal.Signals(status - 128).name)
        return [*shown, f"{name}: saved step {step} of {total_steps}; the same command goes on"]
    grouped = grouped_metrics(metrics)
    losses = [n for n in in_reading_order(grouped) if n.startswith("loss/") and is_first(n)]
    told = ", ".join(f"{name.removeprefix('loss/')} {grouped[name]:.4g}" for name in losses)
    lines = [*shown, f"finished: step {step} of {total_steps}{f'; losses: {told}' if told else ''}"]
    try:
        scores = {name: value for name, value in read_scores(run.path).items() if "by_" not in name}
    except (OSError, json.JSONDecodeError):  # another program's file, or one that it is writing
        scores = {}
    if scores:
        some = ", ".join(f"{name} {value:.4f}" for name, value in list(scores.items())[:MOST_SCORES])
        lines.append(f"scores: {some}")
    lines.append(f"model: {run.final}")
    lines.append(f"next: python -m pipeline.report {folder}; python -m pipeline.explore {folder} --data SHARDS")
    return lines
