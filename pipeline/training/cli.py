"""The command line of the stage scripts: settings in, an exit status out.

What needs torch is imported after the arguments are read, so that --help and a misspelt setting answer at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.base.border import shown
from pipeline.base.commands import BAD_INPUT, MAX_ERROR_CHARACTERS
from pipeline.base.defects import ask_for_reports
from pipeline.base.ranks import read_rank_info
from pipeline.base.run_folder import RunFolder
from pipeline.base.run_lock import RunFolderTaken
from pipeline.config import SettingsError, Stage1Settings, as_overrides, dump_settings, load_settings
from pipeline.supervise.attempts import FOLDER_TAKEN, NOT_FINITE, pause_seconds, restart_count

EXAMPLES = """examples:
  bash launch/stage1.sh train.run_folder=runs/a 'data.shards=[shards/train]' tokenizer.path=tokenizer
  python stages/stage2.py --config mine.yaml model.start_from=runs/a optimizer.peak_learning_rate=1e-5
  deepspeed --hostfile hostfile --no_python launch/stage1.sh --config mine.yaml
  bash launch/stage2.sh --dry-run --config mine.yaml    # before a long run: what it will take, measured"""


def main(
    kind: type[Stage1Settings], yaml_file: Path, description: str | None, argv: Sequence[str] | None = None
) -> int:
    """The command line of a stage script. Returns the exit status: 0 only for a finished run."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXAMPLES
    )
    parser.add_argument("overrides", nargs="*", metavar="group.name=value", help="settings; values are YAML")
    parser.add_argument("--config", type=Path, action="append", default=[], help="YAML over the stage's; repeatable")
    parser.add_argument("--print-config", action="store_true", help="print every setting as it would be used and stop")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="take the largest step, write and read back a checkpoint, evaluate a batch, print what they took beside "
        "the estimate, and stop; the run folder is not touched",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # some launchers pass it; RANK variables rule
    arguments = parser.parse_intermixed_args(as_overrides(sys.argv[1:] if argv is None else argv))
    ask_for_reports()
    try:
        settings = load_settings(kind, [yaml_file, *arguments.config], arguments.overrides)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.print_config:
        print(dump_settings(settings), end="")
        return 0
    return run(settings, dry=arguments.dry_run)


def run(settings: Stage1Settings, *, dry: bool = False) -> int:
    """Run a stage, or its dry run, in this process, one of the world's; the exit status."""
    import torch.distributed as dist

    from pipeline.base.distributed import device_of, join_process_group
    from pipeline.checkpoint.record import CheckpointError
    from pipeline.data.faults import DataFaultLimit
    from pipeline.data.transport import StoreUnavailable
    from pipeline.data.workers import lost_worker
    from pipeline.training.assemble import run_in_group
    from pipeline.training.engine import prepare_cores
    from pipeline.training.failure import NonFiniteStep
    from pipeline.training.stacks import prepare_nccl

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        rank_info = read_rank_info()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":  # torchrun itself restarts at once
        pause = pause_seconds(restart_count(os.environ))
        print(f"rank {rank_info.rank}: restarted; waiting {pause:.0f} s for what failed to recover", flush=True)
        time.sleep(pause)
    prepare_cores(rank_info, device_of(rank_info), settings.train)
    folder = RunFolder.at(settings.train.run_folder)
    prepare_nccl(folder.dry_run if dry else folder.path)
    device = join_process_group(rank_info, settings.collective_seconds)
    known = (SettingsError, ValueError, OSError, CheckpointError, NonFiniteStep, DataFaultLimit, StoreUnavailable)
    try:
        if dry:
            from pipeline.training.dry_run import dry_run_in_group  # it loads what most runs do not need

            status = dry_run_in_group(settings, rank_info, device)
        else:
            status = run_in_group(settings, rank_info, device)
    except known as error:
        # Known failures are one line; every rank that meets one prints it, since any may be the only one.
        print(f"error: rank {rank_info.rank}: {shown(error, MAX_ERROR_CHARACTERS)}", file=sys.stderr, flush=True)
        if device.type == "cpu":  # NCCL would wait here for ranks that may have ended
            dist.destroy_process_group()
        if isinstance(error, RunFolderTaken):
            return FOLDER_TAKEN
        return NOT_FINITE if isinstance(error, NonFiniteStep) else BAD_INPUT
    except RuntimeError as error:
        if (reason := lost_worker(error)) is None:
            raise
        print(f"error: rank {rank_info.rank}: {reason}", file=sys.stderr, flush=True)
        if device.type == "cpu":
            dist.destroy_process_group()
        return 1  # a fault of the machine: worth another start
    dist.barrier()  # the launcher ends the other ranks as soon as one process has ended with a status
    dist.destroy_process_group()
    return status
