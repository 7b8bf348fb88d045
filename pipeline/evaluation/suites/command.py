"""Score models on many sets.

examples:
  python -m pipeline.evaluation suite fgclip2 runs/my/stage2 siglip2-base --root /data --out runs/my/tables
  python -m pipeline.evaluation suite demo runs/demo/stage1 runs/demo/stage2 --out runs/demo/suite
  torchrun --nproc_per_node 8 -m pipeline.evaluation suite mine.yaml runs/my/stage2 --out tables --device cuda

SUITE is a YAML file (docs/evaluation.md), or fgclip2, fgclip, scclip, demo. Rows whose files are not there are named,
with the place where they are published. The same command goes on where it was interrupted. Status 1: a row failed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.evaluation.arguments import add_arguments, given
from pipeline.evaluation.options.base import make_options
from pipeline.evaluation.options.work import WorkOptions
from pipeline.evaluation.suites.specification import read_suite

LEFT_OUT = frozenset({"json_file"})  # the tables are files of --out


def build_parser() -> argparse.ArgumentParser:
    first, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.evaluation suite",
        description=first,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("suite", metavar="SUITE", help="a YAML file, or a suite of this project by name")
    parser.add_argument("models", metavar="MODEL", nargs="+", help="the first is what the others are compared with")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results and the tables")
    parser.add_argument("--root", type=Path, help="folder of all sets (default: the suite's)")
    add_arguments(parser.add_argument_group("work"), WorkOptions, leave_out=LEFT_OUT)
    return parser


def main(words: list[str]) -> int:
    """Returns 0, or 1 where a row failed."""
    arguments = build_parser().parse_args(words)
    suite = read_suite(arguments.suite, arguments.root)
    work = make_options(WorkOptions, "suite", given(arguments, WorkOptions))
    # Not at the top: they import torch, and --help must stay quick.
    from pipeline.base.ranks import read_rank_info
    from pipeline.evaluation.models.load import run_folder_of
    from pipeline.evaluation.suites.report import cells, markdown, papers_of
    from pipeline.evaluation.suites.run import run_suite

    lines, failures = run_suite(suite, arguments.models, arguments.out, work)
    if read_rank_info().is_main:
        print(markdown(suite, arguments.models, lines), end="")
        print(f"tables: {arguments.out / 'table.md'}, table.tex, table.json")
        for model in arguments.models:
            if run_folder_of(model) is not None and not work.no_tracking:
                from pipeline.tracking.scores import log_table

                papers = papers_of(lines)
                columns = ["set", "score", *arguments.models, *papers]
                log_table(model, suite.name, columns, [cells(line, papers) for line in lines])
    return 1 if failures else 0
