"""A source and the steps after it, as one build: ``build folder … --then "captions …" --then phrases``.

Each step is the command of its name over a folder of its own, OUT/steps/2-captions and so on, so any of them can be
run, looked at, resumed or replaced by itself. The last writes to a folder too; from there what has a caption goes to
OUT, with index, manifest and data card.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_tools.execution.card import write_card
from data_tools.execution.command import executor_from, print_summary
from data_tools.execution.shard_work import REPORTS
from data_tools.execution.steps import Drop, FunctionStep, Record, run_step

STEP_MODULES = {
    "captions": "data_tools.captions.command",
    "phrases": "data_tools.phrases.command",
    "boxes": "data_tools.boxes.command",
    "negatives": "data_tools.negatives.command",
}
STEPS_FOLDER, DELETED = "steps", "deleted.json"
NOT_SETTINGS = ("out", "executor", "workers", "ray_address", "gpus_per_worker", "retry_failed", "overwrite", "then")
NOT_SETTINGS += ("delete_steps", "accept_failed", "run", "run_source", "command")


def add_pipeline_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("steps after the source")
    group.add_argument(
        "--then",
        action="append",
        default=[],
        metavar="STEP",
        help=f"a command ({', '.join(STEP_MODULES)}) with its options, in quotes; may be given several times",
    )
    group.add_argument("--delete-steps", action="store_true", help="delete a step's shards once the next has finished")
    group.add_argument(
        "--accept-failed", action="store_true", help="go on where a server gave no answer for some samples"
    )


def run_pipeline(arguments: argparse.Namespace, run_source: Callable[[argparse.Namespace], int]) -> int:
    """Run the source and every ``--then`` step; the exit status of the first that was not finished, or 0.

    Raises:
        ValueError: a step is unknown, its options are wrong, or deleted steps were made with other options.
    """
    out = Path(arguments.out)
    steps = [_parse(text) for text in arguments.then]
    if not steps:
        status = run_source(arguments)
        if status == 0 and (out / "manifest.json").exists():
            print(f"data card: {write_card(out)}")
        return status
    folders = [
        out / STEPS_FOLDER / f"{n + 1}-{name}" for n, name in enumerate(["images", *(name for name, _ in steps)])
    ]
    made = {name: str(value) for name, value in sorted(vars(arguments).items()) if name not in NOT_SETTINGS}
    prefixes = [[made, *arguments.then[:number]] for number in range(len(folders))]
    start = _first_not_deleted(folders, prefixes)
    for number in range(start, len(folders)):
        if number == 0:
            status = run_source(argparse.Namespace(**{**vars(arguments), "out": folders[0]}))
        else:
            name, options = steps[number - 1]
            print(f"step {number + 1}/{len(folders)}: {name}", file=sys.stderr, flush=True)
            status = _run_command([name, str(folders[number - 1]), "--out", str(folders[number]), *options], arguments)
        if status != 0 and not (arguments.accept_failed and number and _all_reported(folders[number - 1 : number + 1])):
            print(f"build stopped at {folders[number]}; the same command goes on from there", file=sys.stderr)
            return status
        if arguments.delete_steps and number:
            _delete(folders[number - 1], prefixes[number - 1])
    if start < len(folders):
        status = _finish(folders[-1], out, arguments)
        if status != 0:
            return status
        if arguments.delete_steps:
            _delete(folders[-1], prefixes[-1])
    print(f"data card: {write_card(out)}")
    return 0


def _parse(text: str) -> tuple[str, list[str]]:
    """Name and options of a step; wrong options end the program before anything is made."""
    name, *options = shlex.split(text) or [""]
    if name not in STEP_MODULES:
        raise ValueError(f"--then {text!r} names no step; it must begin with one of: {', '.join(STEP_MODULES)}")
    parser = argparse.ArgumentParser(prog=f'build --then "{name}"', add_help=False)
    importlib.import_module(STEP_MODULES[name]).add_arguments(parser)
    parser.parse_args(["shards", "--out", "out", *options])
    return name, options


def _run_command(command: list[str], arguments: argparse.Namespace) -> int:
    from data_tools.__main__ import main

    command += ["--executor", arguments.executor, "--gpus-per-worker", str(arguments.gpus_per_worker)]
    for option, value in (("--workers", arguments.workers), ("--ray-address", arguments.ray_address)):
        command += [option, str(value)] if value is not None else []
    for option, given in (("--retry-failed", arguments.retry_failed), ("--overwrite", arguments.overwrite)):
        command += [option] if given else []
    return main(command)


def _all_reported(folders: list[Path]) -> bool:
    """Whether every shard of the first folder is finished in the second."""
    before, after = folders
    return all((after / REPORTS / f"{tar.stem}.json").exists() for tar in before.glob("*.tar"))


def _delete(folder: Path, prefix: list[Any]) -> None:
    """Free a finished step's space; its reports stay. The mark comes first, so a kill in between repeats nothing."""
    aside = folder / f"{DELETED}.aside"
    aside.write_text(json.dumps(prefix, ensure_ascii=False), encoding="utf-8")
    aside.replace(folder / DELETED)
    for path in [*folder.glob("*.tar"), *folder.glob("*.index.parquet"), folder / "manifest.json"]:
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / ".work", ignore_errors=True)


def _first_not_deleted(folders: list[Path], prefixes: list[list[Any]]) -> int:
    """The first step that is still to be run or checked: those before it were finished and then deleted."""
    start = 0
    for number, (folder, prefix) in enumerate(zip(folders, prefixes, strict=True)):
        mark = folder / DELETED
        if not mark.exists():
            continue
        if json.loads(mark.read_text(encoding="utf-8")) != prefix:
            raise ValueError(f"{folder} was finished with other options and then deleted; give another --out")
        start = number + 1
    return start


def _finish(last: Path, out: Path, arguments: argparse.Namespace) -> int:
    print("last step: shards", file=sys.stderr, flush=True)
    summary = run_step(
        FunctionStep("shards", "1", keep_captioned),
        last,
        out,
        executor=executor_from(arguments),
        overwrite=arguments.overwrite,
    )
    status = print_summary(summary)
    if status == 0 and not summary.samples_out:
        raise ValueError(f"no sample has a caption, so there is nothing to train on; the reports in {last} say why")
    return status


def keep_captioned(record: Record) -> Record | Drop:
    """A sample without any caption cannot be trained on; the reason that the caption step gave goes with it."""
    sample = record.sample
    if sample.short_caption is not None or sample.long_caption is not None:
        return record
    why = (sample.source.get("long_caption") or {}).get("absent", "no step wrote one")
    return Drop(record.key, "no_caption", f"the caption is absent: {why}")
