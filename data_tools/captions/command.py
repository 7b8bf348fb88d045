"""Write captions with a vision-language model, behind a server or in this process.

examples:
  python -m data_tools captions shards/images --out shards/captioned \\
      --server http://host:8000/v1 --model Qwen/Qwen2.5-VL-7B-Instruct --concurrency 64
  python -m data_tools captions shards/images --out shards/captioned --transformers models/vlm
  python -m data_tools captions a --out b --server http://host:8000/v1 --model m \\
      --fields long_caption short_caption --prompt long_caption/en=my-prompt.txt --budget-requests 100000

Captions that are there already are kept. Refusals, echoes of the prompt, repetitions, cut-off ends and answers in the
wrong language are asked for once more; what is bad again stays absent, and the report says why. The key of the server
is read from the environment variable that --api-key-variable names.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_tools.captions.client import ModelServer
from data_tools.captions.prompts import FIELDS, Prompt, load_prompt
from data_tools.captions.server import ServerCaptioner
from data_tools.captions.step import Backend, CaptionStep
from data_tools.execution.command import add_execution_arguments, run_step_command
from data_tools.execution.shard_work import WORK
from pipeline.data.schema import LANGUAGES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", help="folder of shards to read")
    parser.add_argument("--out", required=True, help="folder for the shards with captions")
    backend = parser.add_mutually_exclusive_group(required=True)
    backend.add_argument("--server", metavar="URL", help="of an OpenAI-compatible server, up to and with /v1")
    backend.add_argument("--transformers", metavar="FOLDER", help="of a saved image-text-to-text model")
    add_caption_arguments(parser)
    add_server_arguments(parser)
    add_execution_arguments(parser)


def add_caption_arguments(parser: argparse.ArgumentParser) -> None:
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


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `server_from`; for every command that asks a model server."""
    group = parser.add_argument_group("model server")
    group.add_argument("--model", help="its name on the server")
    group.add_argument("--concurrency", type=int, default=16, help="requests at a time, of all workers (default: 16)")
    group.add_argument("--timeout-seconds", type=float, default=120.0, help="for one answer (default: 120)")
    group.add_argument("--max-retries", type=int, default=6, help="of a request that failed (default: 6)")
    group.add_argument("--budget-requests", type=int, help="stop when the job has sent this many, over all its runs")
    group.add_argument("--budget-tokens", type=int, help="stop when the answers have used this many")
    group.add_argument("--max-tokens", type=int, default=512, help="of one answer (default: 512)")
    group.add_argument("--temperature", type=float, default=0.0, help="(default: 0)")
    group.add_argument("--stream", action="store_true", help="ask for streams: for proxies that cut silent connections")
    group.add_argument("--api-key-variable", default="OPENAI_API_KEY", metavar="NAME", help="(default: OPENAI_API_KEY)")


def server_from(arguments: argparse.Namespace, url: str, out: str | Path) -> ModelServer:
    """The server that the options describe; limit and budget hold over all workers that write to ``out``."""
    if not arguments.model:
        raise ValueError("--model is missing; give the model's name as the server lists it under /v1/models")
    return ModelServer(
        url,
        arguments.model,
        concurrency=arguments.concurrency,
        timeout_seconds=arguments.timeout_seconds,
        max_retries=arguments.max_retries,
        budget_requests=arguments.budget_requests,
        budget_tokens=arguments.budget_tokens,
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        stream=arguments.stream,
        shared_folder=Path(out) / WORK / "server",
        api_key_variable=arguments.api_key_variable,
    )


def caption_step(arguments: argparse.Namespace, server: str | None, folder: str | None, out: str | Path) -> CaptionStep:
    """The step that the options describe, asking the server at the address ``server`` or the model in ``folder``."""
    backend: Backend
    if server is not None:
        backend = ServerCaptioner(server_from(arguments, server, out))
    else:
        from data_tools.captions.in_process import TransformersCaptioner  # loads torch, which the client does without

        backend = TransformersCaptioner(
            folder,
            batch_size=arguments.caption_batch_size,
            max_tokens=arguments.max_tokens,
            precision=arguments.precision,
        )
    return CaptionStep(
        backend,
        prompts_for(arguments.fields, arguments.prompt),
        replace_existing=arguments.replace_existing,
        max_image_side=arguments.max_image_side,
    )


def prompts_for(fields: list[str], choices: list[str]) -> dict[tuple[str, str], Prompt]:
    """Prompts by field and language: version 1 of each, or what ``FIELD/LANGUAGE=NAME`` choices say."""
    names = {(field, language): f"{FIELDS[field]}-{language}-1" for field in fields for language in LANGUAGES}
    for choice in choices:
        where, equals, name = choice.partition("=")
        field, _, language = where.partition("/")
        if not equals or (field, language) not in names:
            known = ", ".join(f"{field}/{language}" for field, language in names)
            raise ValueError(f"--prompt {choice!r} does not fit; write FIELD/LANGUAGE=NAME with one of: {known}")
        names[field, language] = name
    return {key: load_prompt(name) for key, name in names.items()}


def run(arguments: argparse.Namespace) -> int:
    step = caption_step(arguments, arguments.server, arguments.transformers, arguments.out)
    return run_step_command(step, arguments, index=False)
