"""The options of every command that runs a step, and how options become typed records."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from data_tools.execution.jobs import Executor, InProcess
from data_tools.execution.local import LocalExecutor

Options = TypeVar("Options")


def options_from(arguments: argparse.Namespace, kind: type[Options], **values: Any) -> Options:
    """A record of type ``kind`` whose fields are the parsed options of the same names, or the given ``values``."""
    names = [field.name for field in fields(kind) if field.name not in values]  # type: ignore[arg-type]
    return kind(**{name: getattr(arguments, name) for name in names if hasattr(arguments, name)}, **values)


@dataclass(frozen=True)
class ExecutionOptions:
    """Where a step runs, and what it does with shards that are there already."""

    executor: str = "local"
    workers: int | None = None
    ray_address: str | None = None
    gpus_per_worker: float = 0.0
    retry_failed: bool = False
    overwrite: bool = False

    def make_executor(self) -> Executor:
        """The executor that the options ask for."""
        if self.executor == "ray":
            from data_tools.execution.ray_executor import RayExecutor  # an extra, which few installations have

            return RayExecutor(self.workers, address=self.ray_address, gpus_per_worker=self.gpus_per_worker)
        return InProcess() if self.workers == 0 else LocalExecutor(self.workers)


def add_execution_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ExecutionOptions`."""
    group = parser.add_argument_group("where and how it runs")
    group.add_argument("--executor", choices=["local", "ray"], default="local", help="this machine, or a Ray cluster")
    group.add_argument(
        "--workers", type=int, help="processes (default: one a core of the machine or cluster; 0: in this process)"
    )
    group.add_argument("--ray-address", help="of a running cluster; without it Ray looks for one, or starts one here")
    group.add_argument("--gpus-per-worker", type=float, default=0.0, help="that Ray reserves (default: 0)")
    group.add_argument("--retry-failed", action="store_true", help="try failed samples of finished shards again")
    group.add_argument("--overwrite", action="store_true", help="replace shards that other settings made")
