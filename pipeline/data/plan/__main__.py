"""What an epoch will look like: steps, batches by group, padding, and how well it is shuffled. Reads no image."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.base.commands import command_parser, run_command
from pipeline.config import SettingsError, Stage2Settings, as_overrides, load_settings
from pipeline.data.manifest import IndexProblem, load_manifests
from pipeline.data.plan.plan import Plan
from pipeline.data.plan.report import first_batches, report

EXAMPLES = """examples:
  python -m pipeline.data.plan 'data.shards=[shards/train]' train.global_batch_size=256
  python -m pipeline.data.plan --config stages/stage1.yaml 'data.shards=[shards/en, shards/zh]' \\
      'data.source_weights=[2, 1]' --epoch 3
  python -m pipeline.data.plan --config runs/stage1/settings.yaml --batches 5     # the plan of a run, as it was

exit status: 0, or 2 where settings or shards do not fit
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan of one epoch; the exit status."""
    arguments = _parser().parse_intermixed_args(as_overrides(sys.argv[1:] if argv is None else argv))
    return run_command(lambda: _print_plan(arguments), (SettingsError, IndexProblem, OSError))


def _print_plan(arguments: argparse.Namespace) -> int:
    # Stage 2's settings hold stage 1's, so the files of both stages and of any run are read.
    settings = load_settings(Stage2Settings, arguments.config, arguments.overrides)
    manifests = load_manifests(settings.data.shards, settings.data)
    plan = Plan(manifests, settings.data, settings.train.seed, settings.train.global_batch_size)
    print(*report(plan, manifests, arguments.epoch), sep="\n")
    for line in first_batches(plan, manifests, arguments.epoch, arguments.batches):
        print(line)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m pipeline.data.plan", __doc__, EXAMPLES)
    parser.add_argument("overrides", nargs="*", metavar="group.name=value", help="settings of a stage; values are YAML")
    parser.add_argument("--config", type=Path, action="append", default=[], help="YAML with settings; repeatable")
    parser.add_argument("--epoch", type=_count, default=0, help="counted from 0 (default: 0)")
    parser.add_argument("--batches", type=_count, default=0, help="also show this many batches (default: 0)")
    return parser


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
