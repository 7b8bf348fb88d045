"""A source and the steps after it, as one build: ``build folder … --then "captions …" --then phrases``.

Each step is the command of its name over a folder of its own, OUT/steps/2-captions and so on, so any of them can be
run, looked at, resumed or replaced by itself. The last writes to a folder too; from there what has a caption goes to
OUT, with index, manifest and data card.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from data_tools.card import write_card
from data_tools.execution.command import print_summary, run_and_print
from data_tools.execution.interface import Step
from data_tools.execution.options import ExecutionOptions
from data_tools.execution.shard_work import REPORTS, WORK
from data_tools.execution.steps import Drop, FunctionStep, Record, run_step
from pipeline.base.border import read_json
from pipeline.base.files import write_json
from pipeline.data.manifest import MANIFEST_NAME

STEP_MODULES = {
    "captions": "data_tools.captions.command",
    "phrases": "data_tools.phrases.command",
    "boxes": "data_tools.boxes.command",
    "negatives": "data_tools.negatives.command",
}
STEPS_FOLDER, DELETED = "steps", "deleted.json"


class StepCommand(Protocol):
    """The module of a step: its options on the command line, as a record, and the step that they describe."""

    INDEX: bool  # whether its shards get an index: they can be trained on as they are

    def add_step_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def read_options(self, arguments: argparse.Namespace) -> Any: ...

    def make_step(self, options: Any, out: Path) -> Step: ...


class SourceCommand(Protocol):
    """The module of a source: its options on the command line, as a record, and the shards made from them."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def read_options(self, arguments: argparse.Namespace) -> Any: ...

    def build(self, options: Any, out: Path, execution: ExecutionOptions) -> int:
        """Write the source's shards to ``out``; the exit status."""


@dataclass(frozen=True)
class PlannedStep:
    """A step of a build: ``text`` as it was asked for, ``options`` as the step's module reads it."""

    name: str
    text: str
    module: StepCommand
    options: Any


@dataclass(frozen=True)
class Build:
    """A source and the steps after it, with everything parsed and checked."""

    source_name: str
    source: SourceCommand
    source_options: Any  # a frozen dataclass of the source's module
    steps: tuple[PlannedStep, ...]
    out: Path
    execution: ExecutionOptions
    delete_steps: bool = False
    accept_failed: bool = False

    @property
    def folders(self) -> list[Path]:
        """Where the source and each step write to."""
        names = ["images", *(step.name for step in self.steps)]
        return [self.out / STEPS_FOLDER / f"{number}-{name}" for number, name in enumerate(names, start=1)]

    def prefix(self, number: int) -> list[Any]:
        """What the shards of ``folders[number]`` were made with."""
        options = {name: str(value) for name, value in asdict(self.source_options).items()}
        return [{"source": self.source_name, **options}, *(step.text for step in self.steps[:number])]


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


def run_build(build: Build) -> int:
    """Run the source and every step; the exit status of the first that was not finished, or 0.

    Raises:
        ValueError: an option is wrong, or deleted steps were made with other options.
    """
    if not build.steps:
        status = build.source.build(build.source_options, build.out, build.execution)
        if status == 0 and (build.out / MANIFEST_NAME).exists():
            print(f"data card: {write_card(build.out)}")
        return status
    folders = build.folders
    start = _first_not_deleted(build)
    # All steps are made before the first is run: a model that is not there is found now, not after the captions.
    made = [step.module.make_step(step.options, folders[n]) for n, step in enumerate(build.steps, 1) if n >= start]
    for number in range(start, len(folders)):
        if number == 0:
            status = build.source.build(build.source_options, folders[0], build.execution)
        else:
            status = _run_step(build, number, made[number - len(folders)])
        if status != 0 and not (build.accept_failed and number and _all_reported(folders[number - 1 : number + 1])):
            print(f"build stopped at {folders[number]}; the same command goes on from there", file=sys.stderr)
            return status
        if build.delete_steps and number:
            _delete(folders[number - 1], build.prefix(number - 1))
    if start < len(folders):
        status = _finish(folders[-1], build)
        if status != 0:
            return status
        if build.delete_steps:
            _delete(folders[-1], build.prefix(len(folders) - 1))
    print(f"data card: {write_card(build.out)}")
    return 0


def _run_step(build: Build, number: int, step: Step) -> int:
    planned, folders = build.steps[number - 1], build.folders
    print(f"step {number + 1}/{len(folders)}: {planned.name}", file=sys.stderr, flush=True)
    return run_and_print(step, folders[number - 1], folders[number], build.execution, index=planned.module.INDEX)


def parse_step(text: str) -> PlannedStep:
    """A step from the text of ``--then``; wrong options end the program before anything is made.

    Raises:
        ValueError: it names no step.
    """
    name, *words = shlex.split(text) or [""]
    if name not in STEP_MODULES:
        raise ValueError(f"--then {text!r} names no step; it must begin with one of: {', '.join(STEP_MODULES)}")
    module: StepCommand = importlib.import_module(STEP_MODULES[name])
    parser = argparse.ArgumentParser(prog=f'build --then "{name}"', add_help=False)
    module.add_step_arguments(parser)
    return PlannedStep(name, text, module, module.read_options(parser.parse_args(words)))


def _all_reported(folders: list[Path]) -> bool:
    """Whether every shard of the first folder is finished in the second."""
    before, after = folders
    return all((after / REPORTS / f"{tar.stem}.json").exists() for tar in before.glob("*.tar"))


def _delete(folder: Path, prefix: list[Any]) -> None:
    """Free a finished step's space; its reports stay. The mark comes first, so a kill in between repeats nothing."""
    write_json(folder / DELETED, prefix, indent=None, durable=True)
    for path in [*folder.glob("*.tar"), *folder.glob("*.index.parquet"), folder / MANIFEST_NAME]:
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / WORK, ignore_errors=True)


def _first_not_deleted(build: Build) -> int:
    """The first step that is still to be run or checked: those before it were finished and then deleted."""
    start = 0
    for number, folder in enumerate(build.folders):
        mark = folder / DELETED
        if not mark.exists():
            continue
        if read_json(mark) != build.prefix(number):
            raise ValueError(f"{folder} was finished with other options and then deleted; give another --out")
        start = number + 1
    return start


def _finish(last: Path, build: Build) -> int:
    print("last step: shards", file=sys.stderr, flush=True)
    summary = run_step(
        FunctionStep("shards", "1", keep_captioned),
        last,
        build.out,
        executor=build.execution.make_executor(),
        overwrite=build.execution.overwrite,
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
