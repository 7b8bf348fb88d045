"""What the programs share on the command line: the look of their help, an error as one line, Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable

from pipeline.base.border import one_line

MAX_ERROR_CHARACTERS = 4000  # all settings of a shard may be named in one
BAD_INPUT = 2
INTERRUPTED = 128 + signal.SIGINT


def command_parser(program: str, description: str | None, examples: str | None = None) -> argparse.ArgumentParser:
    """A parser whose help keeps the lines of ``description`` (a module's docstring) and ``examples``."""
    return argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run_command(work: Callable[[], int], refused: tuple[type[Exception], ...], interrupted: str = "interrupted") -> int:
    """The exit status of ``work``: its own, 2 where the input is refused, 130 after Ctrl-C.

    Args:
        refused: errors of the input, printed as one line; any other is a defect and keeps its trace.
        interrupted: what is printed after Ctrl-C, as how to go on.
    """
    try:
        return work()
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
    except refused as error:
        print(f"error: {one_line(error, MAX_ERROR_CHARACTERS)}", file=sys.stderr)
        return BAD_INPUT
