"""Damaged input, format by format: how many damages were tried, named and harmless, and what they cost.

The damages and what reads them are those of tests/border; each runs in a process of its own under limits of time and
memory. Status 1 where a damage ended in anything else than a named error or a sound result.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from benchmarks.reporting import benchmark_parser
from tests.border.damage import Damage
from tests.border.formats import MODULES, load_format
from tests.border.runner import GOOD, Child, Tally, corpus, generated, run_format

HEADER = "| format | tried | named | harmless | other | slowest | most memory | bound |"


def line_of(tally: Tally) -> str:
    """A row of the table in docs/security.md."""
    form, outcomes = load_format(tally.format), tally.outcomes
    other = outcomes.total() - sum(outcomes[name] for name in GOOD)
    return (
        f"| {form.title} | {outcomes.total()} | {outcomes['named']} | {outcomes['harmless']} | {other} "
        f"| {tally.slowest_seconds:.1f} s | {tally.most_megabytes} MB | {form.bound_megabytes} MB |"
    )


def _damages(name: str, cases: int, base: Path) -> list[tuple[int | str, Damage]]:
    """The corpus, then generated ones."""
    return [*corpus(name), *generated(name, base, range(cases))]


def main() -> int:
    parser = benchmark_parser("benchmarks.border", __doc__ or "")
    parser.add_argument("--formats", nargs="+", choices=list(MODULES), default=list(MODULES), metavar="NAME")
    parser.add_argument("--cases", type=int, default=500, help="generated damages a format, beside the corpus")
    arguments = parser.parse_args()
    child, findings, rows = Child(), [], []
    print(HEADER, "|---" * HEADER.count("| ") + "|", sep="\n", flush=True)
    try:
        for name in arguments.formats:
            tally = run_format(child, name, partial(_damages, name, arguments.cases))
            print(line_of(tally), flush=True)
            findings += tally.findings
            rows.append({"format": name, **tally.outcomes, "slowest_seconds": tally.slowest_seconds})
    finally:
        child.close()
    for finding in findings:
        print(finding, file=sys.stderr)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
