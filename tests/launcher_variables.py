"""What a launcher sets is taken out of the environment again after each test, so that no test starts under another's.

A stage that runs inside the test's process joins a process group, and DeepSpeed wants its variables in the environment.
A test after it would start ``launch/stage.sh`` as one of those ranks: one process where it asked for two.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE",
         "MASTER_ADDR", "MASTER_PORT")  # fmt: skip


@pytest.fixture(autouse=True)
def no_launcher_variables() -> Iterator[None]:
    yield
    for name in NAMES:
        os.environ.pop(name, None)
