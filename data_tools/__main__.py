"""``python -m data_tools COMMAND``: make, index, check and look at shards."""

from __future__ import annotations

import argparse
import importlib
import sys

from pipeline.base.commands import run_command
from pipeline.base.defects import ask_for_reports

# command -> (module with add_arguments(parser) and run(arguments) -> exit status, one line of help)
COMMANDS = {
    "scenes": ("data_tools.scenes.command", "draw the embedded training and test images with captions and boxes"),
    "tokenizer": ("data_tools.tokenizer", "train a SentencePiece tokenizer on the captions of shards or text files"),
    "build": (
        "data_tools.build.command",
        "make shards from COCO, FineHARD, folders, img2dataset or WebDataset tars",
    ),
    "captions": ("data_tools.captions.command", "write long captions with a vision-language model"),
    "phrases": ("data_tools.phrases.command", "find referring expressions in captions"),
    "boxes": ("data_tools.boxes.command", "ground phrases with a zero-shot detector"),
    "negatives": ("data_tools.negatives.command", "make ten altered phrases a region"),
    "export": ("data_tools.export", "write shards as Parquet files that Hugging Face datasets reads"),
    "index": ("data_tools.index", "write the index and manifest that training plans from"),
    "verify": ("data_tools.verify", "re-read shards and report every fault"),
    "card": ("data_tools.card", "write the data card: counts, languages, attributes, generators, drop reasons"),
    "report": ("data_tools.report.command", "one HTML page to look at before training"),
}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="python -m data_tools",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Each command has its own --help with examples, as: python -m data_tools scenes --help",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        if argv and argv[0] == name:  # only the command asked for is imported, so --help answers at once
            implementation = importlib.import_module(module)
            plain = argparse.RawDescriptionHelpFormatter
            command = commands.add_parser(name, help=text, description=implementation.__doc__, formatter_class=plain)
            implementation.add_arguments(command)
            command.set_defaults(run=implementation.run)
        else:
            commands.add_parser(name, help=text)
    arguments = parser.parse_args(argv)
    ask_for_reports()
    return run_command(
        lambda: arguments.run(arguments),
        (ValueError, OSError),
        interrupted="interrupted; run the same command again to go on",
    )


if __name__ == "__main__":
    sys.exit(main())
