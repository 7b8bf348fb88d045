"""Find referring expressions in captions: nouns with their attributes and the clauses attached to them.

examples:
  python -m data_tools phrases shards/captioned --out shards/phrases
  python -m data_tools phrases shards/captioned --out shards/phrases --phrase-fields long_caption --max-phrases 20
  python -m data_tools phrases --caption "A brown dog sits next to two men holding red kites." --language en

They are written to each sample's source.phrases with their places in the caption; the boxes step grounds them. The
taggers come with pip install "fine-grained-vlm[data]" (TextBlob for English, rjieba for Chinese) and load nothing else.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from data_tools.execution.command import run_step_command
from data_tools.execution.options import add_execution_arguments
from data_tools.phrases.finders import finder
from data_tools.phrases.step import FIELDS, PhrasesStep
from pipeline.base.constants import LANGUAGES

INDEX = True


@dataclass(frozen=True)
class PhrasesOptions:
    """The captions to look in, and how many phrases of a sample are kept."""

    fields: tuple[str, ...] = FIELDS
    max_phrases: int = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", nargs="?", type=Path, help="folder of shards to read")
    parser.add_argument("--out", type=Path, help="folder for the shards with phrases")
    parser.add_argument("--caption", help="print the phrases of this one caption and end")
    parser.add_argument("--language", choices=LANGUAGES, default="en", help="of --caption (default: en)")
    add_step_arguments(parser)
    add_execution_arguments(parser)


def add_step_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `PhrasesOptions`."""
    group = parser.add_argument_group("phrases")
    group.add_argument(
        "--phrase-fields", nargs="+", choices=FIELDS, default=list(FIELDS), help="captions to look in (default: both)"
    )
    group.add_argument("--max-phrases", type=int, default=30, help="of one sample (default: 30)")


def read_options(arguments: argparse.Namespace) -> PhrasesOptions:
    """The parsed options as a record."""
    return PhrasesOptions(tuple(arguments.phrase_fields), arguments.max_phrases)


def make_step(options: PhrasesOptions, out: Path) -> PhrasesStep:
    """The step that the options describe; the taggers are loaded, so that a missing one is named at once."""
    for language in LANGUAGES:
        finder(language)
    return PhrasesStep(options.fields, options.max_phrases)


def run(arguments: argparse.Namespace) -> int:
    if arguments.caption is not None:
        for phrase in finder(arguments.language)(arguments.caption):
            print(f"{phrase.start}:{phrase.end}\t{phrase.text}")
        return 0
    if arguments.shards is None or arguments.out is None:
        raise ValueError("give the folder of shards and --out FOLDER; --help has examples")
    return run_step_command(make_step(read_options(arguments), arguments.out), arguments, index=INDEX)
