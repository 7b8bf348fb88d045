"""Look at a run's settings, metrics and newest checkpoint, and name what is wrong with it. Nothing is trained."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.base.commands import command_parser, run_command
from pipeline.base.run_folder import NoRunFolder
from pipeline.config import SettingsError

if TYPE_CHECKING:
    from pipeline.doctor.evidence import Finding

EXAMPLES = """examples:
  python -m pipeline.doctor runs/stage2
  python -m pipeline.doctor runs/stage2 --json > findings.json
  python -m pipeline.doctor --list

exit status: 0 nothing found, 1 something found, 2 no run there or not readable
docs/diagnosis.md has the symptom, measure, cause and remedy of every finding
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings; the exit status."""
    parser = command_parser("python -m pipeline.doctor", __doc__, EXAMPLES)
    parser.add_argument("run", nargs="?", metavar="RUN", help="a run's folder, or anything in it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--list", action="store_true", help="print the names of all checks and stop")
    arguments = parser.parse_args(argv)
    if arguments.run is None and not arguments.list:
        parser.error("RUN is missing; give a run's folder")
    # Here, because torch takes seconds to import.
    from pipeline.checkpoint.record import CheckpointError
    from pipeline.doctor.reading import NothingLogged

    refused = (NoRunFolder, SettingsError, NothingLogged, CheckpointError, OSError)
    return run_command(
        lambda: _print_checks() if arguments.list else _examine(arguments.run, as_json=arguments.json), refused
    )


def _examine(run: str, *, as_json: bool) -> int:
    from pipeline.doctor.checks import CHECKS, diagnose  # torch takes seconds to import
    from pipeline.doctor.reading import read_evidence

    evidence, checkpoint = read_evidence(run)
    found = diagnose(evidence)
    if as_json:
        record: dict[str, Any] = {
            "run": run,
            "step": evidence.last_step,
            "checkpoint": str(checkpoint) if checkpoint else None,
            "checks": list(CHECKS),
            "findings": [{"name": name, **finding.to_json()} for name, finding in found.items()],
        }
        print(json.dumps(record, indent=1, ensure_ascii=False))
    else:
        looked = f"step {evidence.last_step}, checkpoint {checkpoint.name if checkpoint else 'none'}"
        print(f"{run}: {looked}: {len(found)} finding(s) of {len(CHECKS)} checks")
        print(_as_text(found), end="")
    return 1 if found else 0


def _as_text(found: Mapping[str, Finding]) -> str:
    return "".join(
        f"\n{name}\n  seen    {finding.seen}\n  figure  {finding.figure:.6g}\n  cause   {finding.cause}\n"
        f"  change  {finding.setting}: {finding.change}\n"
        for name, finding in found.items()
    )


def _print_checks() -> int:
    from pipeline.doctor.checks import CHECKS  # imports torch

    for name, check in CHECKS.items():
        print(f"{name:28} {' '.join((check.__doc__ or '').split())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
