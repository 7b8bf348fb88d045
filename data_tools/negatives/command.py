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
A language without a lexicon gets none by rule, which the summary says (no_lexicon_de), and from a server only what
differs from the phrase, from each other and from the true phrases: its synonyms are not known here.
Regions that have negatives keep them. Finished shards are skipped, so the same command goes on after a stop.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools.execution.command import run_step_command
from data_tools.execution.options import add_execution_arguments, options_from
from data_tools.model_server.options import ServerOptions, add_server_arguments
from data_tools.negatives.interface import NEGATIVES_A_PHRASE, Generator, Request, phrase_seed
from data_tools.negatives.prompts import PLACES, load_negatives_prompt
from data_tools.negatives.rules import RuleGenerator
from data_tools.negatives.server import ServerGenerator
from data_tools.negatives.step import NegativesStep
from data_tools.text.prompts import Prompt
from pipeline.base.constants import LANGUAGES
from pipeline.base.languages import canonical

INDEX = True
MAX_TOKENS = 1024  # fourteen long phrases as JSON; a caption needs half of it


@dataclass(frozen=True)
class NegativesOptions:
    """Where negatives come from (``rules`` or ``server``), and when a region gets them."""

    server: ServerOptions
    generator: str = "rules"
    negatives_prompt: tuple[str, ...] = ()
    minimum: int = NEGATIVES_A_PHRASE
    seed: int = 0
    replace_existing: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", nargs="?", type=Path, help="folder of shards to read")
    parser.add_argument("--out", type=Path, help="folder for the shards with negatives")
    parser.add_argument("--phrase", help="print the rule generator's negatives of this one phrase and end")
    parser.add_argument("--language", choices=LANGUAGES, default="en", help="of --phrase (default: en)")
    add_step_arguments(parser)
    add_execution_arguments(parser)


def add_step_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `NegativesOptions`."""
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
    add_server_arguments(parser, max_tokens=MAX_TOKENS)


def read_options(arguments: argparse.Namespace) -> NegativesOptions:
    """The parsed options as a record."""
    server, prompts = options_from(arguments, ServerOptions), tuple(arguments.negatives_prompt)
    return options_from(arguments, NegativesOptions, server=server, negatives_prompt=prompts)


def make_step(options: NegativesOptions, out: Path) -> NegativesStep:
    """The step that the options describe.

    Raises:
        ValueError: an option is missing or out of its range.
    """
    generator: Generator = RuleGenerator()
    if options.generator == "server":
        if options.server.server is None:
            raise ValueError("--generator server needs an address; add --server http://HOST:PORT/v1 and --model NAME")
        generator = ServerGenerator(options.server.connect(out), _prompts(options.negatives_prompt))
    return NegativesStep(
        generator, minimum=options.minimum, seed=options.seed, replace_existing=options.replace_existing
    )


def _prompts(choices: Sequence[str]) -> dict[tuple[str, str], Prompt]:
    prompts = {}
    for choice in choices:
        where, equals, path = choice.partition("=")
        purpose, _, language = where.partition("/")
        if not equals or purpose not in PLACES:
            raise ValueError(
                f"--negatives-prompt {choice!r} does not fit; write PURPOSE/LANGUAGE=FILE, the purpose one of: "
                f"{', '.join(PLACES)}"
            )
        language = canonical(language)
        prompts[purpose, language] = load_negatives_prompt(purpose, language, Path(path))
    return prompts


def run(arguments: argparse.Namespace) -> int:
    if arguments.phrase is not None:
        return _show(arguments.phrase, arguments.language, arguments.seed)
    if arguments.shards is None or arguments.out is None:
        raise ValueError("give the folder of shards and --out FOLDER; --help has examples")
    return run_step_command(make_step(read_options(arguments), arguments.out), arguments, index=INDEX)


def _show(phrase: str, language: str, seed: int) -> int:
    seed = phrase_seed(seed, "", 0, phrase)
    outcome = RuleGenerator().one(Request(phrase, language, (), seed))
    for negative in outcome.negatives:
        print(f"{'+'.join(negative.attributes)}\t{negative.text}")
    if outcome.reason:
        print(f"{len(outcome.negatives)} of {NEGATIVES_A_PHRASE} negatives: {outcome.reason}", file=sys.stderr)
    return 0 if not outcome.reason else 1
