"""What a run would need, before it is started: memory by part, time, data, cores and disk. Needs no GPU."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.base.commands import command_parser, run_command
from pipeline.base.files import write_text
from pipeline.config import SettingsError, as_overrides, load_stage
from pipeline.estimate.devices import UnknownDevice, device_names, read_device

EXAMPLES = """examples:
  python -m pipeline.estimate stage1 --devices 160 --device h200 train.global_batch_size=61440
  python -m pipeline.estimate stage2 --devices 8 --device rtx4090 --config mine.yaml model.gradient_checkpointing=true
  python -m pipeline.estimate stage1 --devices 2 --device cpu 'data.shards=[shards/train]' --json estimate.json

exit status: 0 if every patch budget fits, 1 if one does not, 2 where settings cannot be read
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the estimate; the exit status."""
    arguments = _parser().parse_intermixed_args(as_overrides(sys.argv[1:] if argv is None else argv))
    return run_command(lambda: _print_estimate(arguments), (SettingsError, UnknownDevice, OSError))


def _print_estimate(arguments: argparse.Namespace) -> int:
    device = read_device(arguments.device)
    settings = load_stage(arguments.stage, arguments.config, arguments.overrides)
    # here, because torch takes seconds to import
    from pipeline.estimate.estimate import make_estimate
    from pipeline.estimate.report import format_estimate

    estimate = make_estimate(settings, arguments.devices, device)
    print(format_estimate(estimate))
    if arguments.json:
        write_text(arguments.json, json.dumps(estimate.to_json(), indent=1, ensure_ascii=False) + "\n")
    return 0 if estimate.fits else 1


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m pipeline.estimate", __doc__, EXAMPLES)
    parser.add_argument("stage", choices=("stage1", "stage2"))
    parser.add_argument("overrides", nargs="*", metavar="group.name=value", help="settings; values are YAML")
    parser.add_argument("--devices", type=_at_least_one, required=True, help="in all, on all hosts")
    parser.add_argument("--device", required=True, metavar="NAME", help=", ".join(device_names()))
    parser.add_argument("--config", type=Path, action="append", default=[], help="YAML over the stage's; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything to FILE as JSON")
    return parser


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
