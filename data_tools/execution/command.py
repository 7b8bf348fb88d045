"""Options that every command which runs a step has."""

from __future__ import annotations

import argparse
import sys

from data_tools.execution.jobs import Executor, InProcess
from data_tools.execution.local import LocalExecutor
from data_tools.execution.steps import RunSummary, Step, run_step


def add_execution_arguments(parser: argparse.ArgumentParser) -> None:
    """--executor, --workers, --ray-address, --gpus-per-worker, --retry-failed, --overwrite."""
    group = parser.add_argument_group("where and how it runs")
    group.add_argument("--executor", choices=["local", "ray"], default="local", help="this machine, or a Ray cluster")
    group.add_argument(
        "--workers", type=int, help="processes (default: one a core of the machine or cluster; 0: in this process)"
    )
    group.add_argument("--ray-address", help="of a running cluster; without it Ray looks for one, or starts one here")
    group.add_argument("--gpus-per-worker", type=float, default=0.0, help="that Ray reserves (default: 0)")
    group.add_argument("--retry-failed", action="store_true", help="try failed samples of finished shards again")
    group.add_argument("--overwrite", action="store_true", help="replace shards that other settings made")


def executor_from(arguments: argparse.Namespace) -> Executor:
    """The executor that `add_execution_arguments`'s options ask for."""
    if arguments.executor == "ray":
        from data_tools.execution.ray_executor import RayExecutor

        return RayExecutor(arguments.workers, address=arguments.ray_address, gpus_per_worker=arguments.gpus_per_worker)
    return InProcess() if arguments.workers == 0 else LocalExecutor(arguments.workers)


def run_step_command(step: Step, arguments: argparse.Namespace, *, index: bool = True) -> int:
    """Run ``step`` from ``arguments.shards`` to ``arguments.out``; prints the summary; 0, or 1 if not all went well."""
    summary = run_step(
        step,
        arguments.shards,
        arguments.out,
        executor=executor_from(arguments),
        retry_failed=arguments.retry_failed,
        overwrite=arguments.overwrite,
        index=index,
    )
    return print_summary(summary)


def print_summary(summary: RunSummary) -> int:
    """Print what a run did and return its exit status."""
    for line in summary.lines():
        print(line, file=sys.stdout if summary.ok else sys.stderr)
    return 0 if summary.ok else 1
