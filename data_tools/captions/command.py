"""Write captions with a vision-language model, behind a server or in this process.

examples:
  python -m data_tools captions shards/images --out shards/captioned \\
      --server http://host:8000/v1 --model Qwen/Qwen2.5-VL-7B-Instruct --concurrency 64
  python -m data_tools captions shards/images --out shards/captioned --transformers models/vlm
  python -m data_tools captions a --out b --server http://host:8000/v1 --model m \\
      --fields long_caption short_caption --prompt long_caption/en=my-prompt.txt --budget-requests 100000

Captions that are there already are kept. Refusals, echoes of the prompt, repetitions, cut-off ends and answers in the
wrong language are asked for once more; what is bad again stays absent, and the report says why. English and Chinese
have prompts; another language needs yours (--prompt long_caption/de=my-prompt.txt), or its samples are counted and
left without. The key of the server is read from the environment variable that --api-key-variable names.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools.captions.prompts import FIELDS, load_caption_prompt
from data_tools.captions.server import ServerCaptioner
from data_tools.captions.step import Backend, CaptionStep
from data_tools.execution.command import run_step_command
from data_tools.execution.options import add_execution_arguments, options_from
from data_tools.model_server.options import ServerOptions, add_server_arguments
from data_tools.text.prompts import Prompt
from pipeline.base.constants import LANGUAGES
from pipeline.base.languages import canonical

INDEX = False  # samples without a caption are no samples to train on yet


@dataclass(frozen=True)
class CaptionOptions:
    """Which captions to write, and who writes them: the model in the folder ``transformers``, else ``server``."""

    server: ServerOptions
    transformers: str | None = None
    fields: tuple[str, ...] = ("long_caption",)
    prompt: tuple[str, ...] = ()
    replace_existing: bool = False
    max_image_side: int = 1280
    caption_batch_size: int = 8
    precision: str = "bfloat16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", type=Path, help="folder of shards to read")
    parser.add_argument("--out", required=True, type=Path, help="folder for the shards with captions")
    add_step_arguments(parser)
    add_execution_arguments(parser)


def add_step_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `CaptionOptions`."""
    backend = parser.add_mutually_exclusive_group(required=True)
    backend.add_argument("--server", metavar="URL", help="of an OpenAI-compatible server, up to and with /v1")
    backend.add_argument("--transformers", metavar="FOLDER", help="of a saved image-text-to-text model")
    group = parser.add_argument_group("captions")
    group.add_argument("--fields", nargs="+", choices=FIELDS, default=["long_caption"], help="(default: long_caption)")
    group.add_argument(
        "--prompt", action="append", default=[], metavar="FIELD/LANGUAGE=NAME", help="a prompt's name or a text file"
    )
    group.add_argument("--replace-existing", action="store_true", help="write captions anew that are there already")
    group.add_argument(
        "--max-image-side", type=int, default=1280, help="larger images are sent smaller (default: 1280)"
    )
    group.add_argument("--caption-batch-size", type=int, default=8, help="of --transformers (default: 8)")
    group.add_argument("--precision", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    add_server_arguments(parser)


def read_options(arguments: argparse.Namespace) -> CaptionOptions:
    """The parsed options as a record."""
    server = options_from(arguments, ServerOptions)
    fields, prompt = tuple(arguments.fields), tuple(arguments.prompt)
    return options_from(arguments, CaptionOptions, server=server, fields=fields, prompt=prompt)


def make_step(options: CaptionOptions, out: Path) -> CaptionStep:
    """The step that the options describe.

    Raises:
        ValueError: a prompt, the model's folder or its name is missing.
    """
    backend: Backend
    if options.transformers is None:
        backend = ServerCaptioner(options.server.connect(out))
    else:
        from data_tools.captions.in_process import TransformersCaptioner  # loads torch, which the client does without

        backend = TransformersCaptioner(
            options.transformers,
            batch_size=options.caption_batch_size,
            max_tokens=options.server.max_tokens,
            precision=options.precision,
        )
    return CaptionStep(
        backend,
        prompts_for(options.fields, options.prompt),
        replace_existing=options.replace_existing,
        max_image_side=options.max_image_side,
    )


def prompts_for(fields: Sequence[str], choices: Sequence[str]) -> dict[tuple[str, str], Prompt]:
    """Prompts by field and language: version 1 of each, or what ``FIELD/LANGUAGE=NAME`` choices say."""
    names = {(field, language): f"{FIELDS[field]}-{language}-1" for field in fields for language in LANGUAGES}
    for choice in choices:
        where, equals, name = choice.partition("=")
        field, _, language = where.partition("/")
        if not equals or field not in fields:
            known = ", ".join(f"{field}/LANGUAGE" for field in fields)
            raise ValueError(f"--prompt {choice!r} does not fit; write FIELD/LANGUAGE=NAME with one of: {known}")
        names[field, canonical(language)] = name
    return {key: load_caption_prompt(name) for key, name in names.items()}


def run(arguments: argparse.Namespace) -> int:
    step = make_step(read_options(arguments), arguments.out)
    return run_step_command(step, arguments, index=INDEX)
