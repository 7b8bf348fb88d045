"""What a stage sets of torch for its whole process is set back after each test, as is what a launcher sets.

A stage that runs inside the test's process divides the machine's cores among its ranks and asks for deterministic
algorithms. The tests after it would compute under both: several times slower where two workers share two cores, and
not as they would alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def torch_settings_of_the_start() -> Iterator[None]:
    torch = sys.modules.get("torch")  # a test without it is not made to wait for it
    if torch is None:
        yield
        return
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fills, tf32 = torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cuda.matmul.allow_tf32
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fills
    torch.backends.cuda.matmul.allow_tf32 = tf32
