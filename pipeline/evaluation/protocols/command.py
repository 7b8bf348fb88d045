"""List published protocols: each row's command, what it needs and where its files are published.

examples:
  python -m pipeline.evaluation protocols
  python -m pipeline.evaluation protocols fgclip2
"""

from __future__ import annotations

import argparse

from pipeline.evaluation.protocols.rows import ProtocolRow, protocol_names, rows_of


def build_parser() -> argparse.ArgumentParser:
    first, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.evaluation protocols",
        description=first,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("names", metavar="PROTOCOL", nargs="*", help=f"{', '.join(protocol_names())} (default: all)")
    return parser


def main(words: list[str]) -> int:
    """Print a Markdown list; returns 0."""
    for name in build_parser().parse_args(words).names or protocol_names():
        rows = rows_of(name)
        print(f"### {name}\n\n{rows[0].source}\n")
        for row in rows:
            print(described(row))
    return 0


def command_of(row: ProtocolRow) -> str:
    """The command that measures a row, with its files below the folder of all sets."""
    words = [f"python -m pipeline.evaluation {row.task} MODEL --protocol {row.reference}"]
    for option, given in row.files.items():
        flag = "--" + option.replace("_", "-")
        words += [f"{flag} {one}" for one in (given if isinstance(given, list) else [given])]
    return " \\\n    ".join(words)


def described(row: ProtocolRow) -> str:
    """A row as Markdown: title, command, choices, needs."""
    choices = ", ".join(f"{name} {value!r}" for name, value in row.options.items())
    lines = [f"**{row.title}** (`{row.reference}`). Files: {row.where}.", f"Choices: {choices}."]
    lines += [f"`--{option.replace('_', '-')}`: {what}." for option, what in row.needs.items()]
    lines += [f"Not as published: {row.differs}."] if row.differs else []
    return "\n".join([" ".join(lines), "", "```", command_of(row), "```", ""])
