"""Restart a stage by itself when a machine fails: bounded, with growing pauses, on the hosts that are left."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.base.commands import command_parser, run_command
from pipeline.base.run_folder import RunFolder
from pipeline.config import SettingsError, as_overrides, load_stage
from pipeline.preflight.hostfile import HostfileError
from pipeline.supervise.attempts import (
    FIRST_PAUSE_SECONDS,
    TIME_LIMIT,
    failed_attempts,
    nodes_to_exclude,
    why_not_again,
)
from pipeline.supervise.launcher import Supervisor

EXAMPLES = """examples:
  python -m pipeline.supervise run stage1 train.run_folder=runs/stage1 'data.shards=[shards/train]'
  python -m pipeline.supervise run stage2 --hostfile hostfile --max-restarts 20 --config mine.yaml
  python -m pipeline.supervise after stage1 --status 137 --restarts 2 train.run_folder=runs/stage1    # for Slurm

run: the status of the last start. after: 0 to queue the job again, with the nodes to leave out as one line, else 1.
A run is not started again when it finished, was asked to end, cannot use its input (status 2), has a loss that is not
finite (status 3), failed at one step twice in a row, or was restarted --max-restarts times.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status of the last start, or the answer for a batch system."""
    arguments, further = _parser().parse_known_intermixed_args(as_overrides(sys.argv[1:] if argv is None else argv))
    if further:
        print(f"error: {' '.join(further)} is no option; settings are written group.name=value", file=sys.stderr)
        return 2
    return run_command(lambda: _supervise(arguments), (SettingsError, HostfileError))


def _supervise(arguments: argparse.Namespace) -> int:
    settings = load_stage(arguments.stage, arguments.config, arguments.overrides)
    run_folder = Path(settings.train.run_folder)
    if arguments.action == "after":
        if arguments.dry_run:
            print("supervise: the dry run is over; it is not started again", file=sys.stderr)
            return 1
        return after(run_folder, arguments.status, arguments.restarts, arguments.max_restarts)
    if arguments.dry_run:
        run_folder = RunFolder.at(run_folder).dry_run
    passed = ["--dry-run"] * arguments.dry_run
    passed += [word for file in arguments.config for word in ("--config", str(file))] + arguments.overrides
    return Supervisor(
        arguments.stage,
        passed,
        run_folder,
        # an indexed batch of any size goes to any number of ranks; a streamed one has no slices of unequal sizes
        settings.train.global_batch_size // settings.train.accumulation_steps if settings.data.streaming else None,
        hostfile=arguments.hostfile,
        max_restarts=0 if arguments.dry_run else arguments.max_restarts,
        first_pause_seconds=arguments.first_pause_seconds,
    ).run()


def after(run_folder: Path, status: int, restarts: int, max_restarts: int) -> int:
    """Whether a batch system is to queue the job again: 0 and the nodes to leave out, or 1 and why not."""
    attempts = failed_attempts(run_folder)
    if status != TIME_LIMIT and (reason := why_not_again(status, attempts, restarts, max_restarts)):
        print(f"supervise: the run is over: {reason}", file=sys.stderr)
        return 1
    print(",".join(nodes_to_exclude(attempts)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m pipeline.supervise", __doc__, EXAMPLES)
    parser.add_argument("action", choices=("run", "after"))
    parser.add_argument("stage", choices=("stage1", "stage2"))
    parser.add_argument("overrides", nargs="*", metavar="group.name=value", help="settings; values are YAML")
    parser.add_argument("--config", type=Path, action="append", default=[], help="YAML over the stage's; repeatable")
    parser.add_argument("--dry-run", action="store_true", help="start the stage's dry run, once")
    parser.add_argument("--hostfile", type=Path, help="several hosts, NAME slots=N a line; default: this machine")
    parser.add_argument("--max-restarts", type=int, default=10, help="default: 10")
    parser.add_argument(
        "--first-pause-seconds",
        type=float,
        default=FIRST_PAUSE_SECONDS,
        help=f"before the first restart; doubles each time up to ten minutes (default: {FIRST_PAUSE_SECONDS:g})",
    )
    parser.add_argument("--status", type=int, default=1, help="after: how the stage ended")
    parser.add_argument("--restarts", type=int, default=0, help="after: how often it was restarted already")
    return parser


if __name__ == "__main__":
    sys.exit(main())
