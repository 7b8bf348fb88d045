"""What every command that runs a step does."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data_tools.execution.options import ExecutionOptions, options_from
from data_tools.execution.steps import RunSummary, Step, run_step


def run_step_command(step: Step, arguments: argparse.Namespace, *, index: bool = True) -> int:
    """Run ``step`` from ``arguments.shards`` to ``arguments.out``; prints the summary; 0, or 1 if not all went well."""
    execution = options_from(arguments, ExecutionOptions)
    return run_and_print(step, arguments.shards, arguments.out, execution, index=index)


def run_and_print(step: Step, shards: Path, out: Path, execution: ExecutionOptions, *, index: bool) -> int:
    """As `run_step_command`, from typed options."""
    summary = run_step(
        step,
        shards,
        out,
        executor=execution.make_executor(),
        retry_failed=execution.retry_failed,
        overwrite=execution.overwrite,
        index=index,
    )
    return print_summary(summary)


def print_summary(summary: RunSummary) -> int:
    """Print what a run did and return its exit status."""
    for line in summary.lines():
        print(line, file=sys.stdout if summary.ok else sys.stderr)
    return 0 if summary.ok else 1
