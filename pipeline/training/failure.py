"""A step whose loss or gradient is not finite: its error, its folder, and the command that replays it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.base.run_folder import RunFolder


class NonFiniteStep(RuntimeError):
    """A loss or a gradient is not finite; the update was not applied and a bundle was written."""


def bundle_folder(run_folder: str | Path, step: int) -> Path:
    return RunFolder.at(run_folder).failures / f"step-{step:08d}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.training.failure",
        description="Replay the step of a failure bundle on one process.",
        epilog="example: python -m pipeline.training.failure runs/stage2/failures/step-00000120",
    )
    parser.add_argument("bundle", type=Path, help="RUN/failures/step-…")
    arguments = parser.parse_args(argv)
    if not (arguments.bundle / "checkpoint").is_dir():
        print(f"error: {arguments.bundle} holds no checkpoint; give a folder RUN/failures/step-…", file=sys.stderr)
        return 2
    from pipeline.training.bundle import replay  # imports torch: --help must not wait for it

    return replay(arguments.bundle)


if __name__ == "__main__":
    sys.exit(main())
