"""Make shards of images, captions and boxes from what you have.

examples:
  python -m data_tools build coco --images val2017 --captions captions_val2017.json \\
      --instances instances_val2017.json --out shards/coco
  python -m data_tools build finehard --annotations FineHARD/jsonfiles --url-keys FineHARD/url2key_jsons \\
      --images downloads --out shards/finehard
  python -m data_tools build folder --images photographs --language en --out shards/photographs \\
      --then "captions --server http://host:8000/v1 --model qwen --concurrency 64" --then phrases \\
      --then "boxes --detector models/grounding-dino" --then negatives
  python -m data_tools build video --videos movies --table captions.csv --language en --out shards/clips
  python -m data_tools build folder --help

A build is a source and the steps after it. Each step can be run by itself (python -m data_tools captions --help), is
finished shard by shard, and goes on where it was stopped when the same command is given again.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from data_tools.build.pipeline import Build, SourceCommand, add_pipeline_arguments, parse_step, run_build
from data_tools.execution.options import ExecutionOptions, add_execution_arguments, options_from

# source -> (module, a `SourceCommand`, and one line of help)
SOURCES = {
    "coco": ("data_tools.sources.coco", "a folder of images with COCO or LVIS annotations, and FG-OVD rows"),
    "finehard": ("data_tools.sources.finehard", "the public FineHARD release and its images as img2dataset left them"),
    "folder": ("data_tools.sources.folder", "a folder of images, with captions beside them or without"),
    "img2dataset": ("data_tools.sources.img2dataset", "the output folders of img2dataset"),
    "table": ("data_tools.sources.table", "a CSV, TSV, JSON-lines or Parquet table, or a Hugging Face data set"),
    "video": ("data_tools.sources.video", "a folder of videos with a table of captions, and tracks of MOT or COCO-VID"),
    "webdataset": ("data_tools.sources.webdataset", "WebDataset tars of images and captions"),
}


class _SourceParser(argparse.ArgumentParser):
    """Gets its options when it is chosen: only that source is imported, so help and the other sources stay quick."""

    module: str | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.module is not None:
            source = source_module(self.module)
            self.module = None
            self.description = source.__doc__
            source.add_arguments(self)
            self.add_argument("--out", required=True, type=Path, help="folder for the shards")
            add_execution_arguments(self)
            add_pipeline_arguments(self)
        return super().parse_known_args(args, namespace)


def source_module(name: str) -> SourceCommand:
    """The module of a source."""
    return importlib.import_module(name)  # a module as the protocol, checked by a test


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE", parser_class=_SourceParser)
    for name, (module, text) in SOURCES.items():
        source = sources.add_parser(name, help=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        source.module = module


def run(arguments: argparse.Namespace) -> int:
    source = source_module(SOURCES[arguments.source][0])
    build = Build(
        arguments.source,
        source,
        source.read_options(arguments),
        tuple(parse_step(text) for text in arguments.then),
        arguments.out,
        options_from(arguments, ExecutionOptions),
        arguments.delete_steps,
        arguments.accept_failed,
    )
    return run_build(build)
