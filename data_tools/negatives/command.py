"""Make ten altered phrases for every region: one attribute changed, object and sentence kept.

examples:
  python -m data_tools negatives shards/coco --out shards/coco-negatives
  python -m data_tools negatives shards/boxes --out shards/negatives --generator server \\
      --server http://host:8000/v1 --model Qwen/Qwen2.5-72B-Instruct --concurrency 64
  python -m data_tools negatives shards/finehard --out shards/refilled --replace-existing --minimum 5
  python -m data_tools negatives --phrase "A light grey plastic pipe." --language en

--generator rules needs nothing but the lexicons that come with it (English and Chinese). --generator server asks a
language model for JSON; what the validators refuse is asked for once more. Both pass the same validators: distinct,
the object kept, attributes only, no synonyms of the true value, nothing that another phrase of the image makes true.
Regions that have negatives keep them. Finished shards are skipped, so the same command goes on after a stop.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data_tools.captions.command import add_server_arguments, server_from
from data_tools.execution.command import add_execution_arguments, run_step_command
from data_tools.negatives.interface import NEGATIVES_A_PHRASE, Generator, Request, phrase_seed
from data_tools.negatives.prompts import PLACES, load_negatives_prompt
from data_tools.negatives.rules import RuleGenerator
from data_tools.negatives.server import ServerGenerator
from data_tools.negatives.step import NegativesStep
from pipeline.data.schema import LANGUAGES

MAX_TOKENS = 1024  # fourteen long phrases as JSON; a caption needs half of it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", nargs="?", help="folder of shards to read")
    parser.add_argument("--out", help="folder for the shards with negatives")
    add_negatives_arguments(parser)
    parser.add_argument("--phrase", help="print the rule generator's negatives of this one phrase and end")
    parser.add_argument("--language", choices=LANGUAGES, default="en", help="of --phrase (default: en)")
    add_server_arguments(parser)
    parser.set_defaults(max_tokens=MAX_TOKENS)
    add_execution_arguments(parser)


def add_negatives_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `negatives_step`."""
    group = parser.add_argument_group("negatives")
    group.add_argument("--generator", choices=["rules", "server"], default="rules", help="(default: rules)")
    group.add_argument("--server", metavar="URL", help="of an OpenAI-compatible server, up to and with /v1")
    group.add_argument(
        "--negatives-prompt",
        action="append",
        default=[],
        metavar="PURPOSE/LANGUAGE=FILE",
        help="a text file instead of the prompt that comes with the generator; purposes: negatives, again",
    )
    group.add_argument(
        "--minimum",
        type=int,
        default=NEGATIVES_A_PHRASE,
        help="a region with fewer valid negatives keeps none (default: 10)",
    )
    group.add_argument("--seed", type=int, default=0, help="of the choice among alternatives (default: 0)")
    group.add_argument("--replace-existing", action="store_true", help="make negatives anew that are there already")


def negatives_step(arguments: argparse.Namespace, server: str | None, out: str | Path) -> NegativesStep:
    """The step that the options describe.

    Raises:
        ValueError: an option is missing or out of its range.
    """
    generator: Generator = RuleGenerator()
    if arguments.generator == "server":
        if server is None:
            raise ValueError("--generator server needs an address; add --server http://HOST:PORT/v1 and --model NAME")
        prompts = _prompts(arguments.negatives_prompt)
        generator = ServerGenerator(server_from(arguments, server, out), prompts)
    return NegativesStep(
        generator, minimum=arguments.minimum, seed=arguments.seed, replace_existing=arguments.replace_existing
    )


def _prompts(choices: list[str]) -> dict:
    prompts = {}
    for choice in choices:
        where, equals, path = choice.partition("=")
        purpose, _, language = where.partition("/")
        if not equals or purpose not in PLACES or language not in LANGUAGES:
            known = ", ".join(f"{purpose}/{language}" for purpose in PLACES for language in LANGUAGES)
            raise ValueError(
                f"--negatives-prompt {choice!r} does not fit; write PURPOSE/LANGUAGE=FILE, one of: {known}"
            )
        prompts[purpose, language] = load_negatives_prompt(purpose, language, Path(path))
    return prompts


def run(arguments: argparse.Namespace) -> int:
    if arguments.phrase is not None:
        return _show(arguments)
    if arguments.shards is None or arguments.out is None:
        raise ValueError("give the folder of shards and --out FOLDER; --help has examples")
    return run_step_command(negatives_step(arguments, arguments.server, arguments.out), arguments)


def _show(arguments: argparse.Namespace) -> int:
    seed = phrase_seed(arguments.seed, "", 0, arguments.phrase)
    outcome = RuleGenerator().one(Request(arguments.phrase, arguments.language, (), seed))
    for negative in outcome.negatives:
        print(f"{'+'.join(negative.attributes)}\t{negative.text}")
    if outcome.reason:
        print(f"{len(outcome.negatives)} of {NEGATIVES_A_PHRASE} negatives: {outcome.reason}", file=sys.stderr)
    return 0 if not outcome.reason else 1
