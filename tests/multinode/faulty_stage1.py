"""Stage 1 with a fault built in, for tests: ``FAULT`` is where, rank 1 (rank 0 for the tracker) has it at step 3."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.config import Stage1Settings
from pipeline.data.micro_batches import MicroBatches
from pipeline.model import FGCLIP2
from pipeline.tracking.tracker import RunTracker
from pipeline.training.cli import main

FAULT_CALL = 3


def fail_at_third_call(owner: Any, name: str, rank: int, message: str) -> None:
    """Make ``owner.name`` raise the third time this process calls it, on one rank."""
    original, calls = getattr(owner, name), 0

    def faulty(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        once = os.environ.get("FAULT_ONCE")  # a file that says that the fault has been had
        if calls == FAULT_CALL and int(os.environ["RANK"]) == rank and not (once and Path(once).exists()):
            if once:
                Path(once).touch()
            raise RuntimeError(message)
        return original(*arguments, **options)

    setattr(owner, name, faulty)


FAULTS = {
    "forward": (FGCLIP2, "forward", 1, "前向 forward broke"),
    "tracker": (RunTracker, "log", 0, "记录 tracker broke"),
    "loader": (MicroBatches, "__getitem__", 1, "读取 loader broke"),
}

if __name__ == "__main__":
    if os.environ["FAULT"] in FAULTS:
        fail_at_third_call(*FAULTS[os.environ["FAULT"]])
    sys.exit(main(Stage1Settings, Path(__file__).resolve().parents[2] / "stages" / "stage1.yaml", __doc__))
