"""``pytest --fast``: a test that is about to start a second process is left out, so that the rest answers quickly."""

from __future__ import annotations

import multiprocessing.process
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ALLOWED = ("git", "uname")  # asked for a revision or the processor in a moment, also by imports
REASON = "starts a second process, which --fast leaves out"


@pytest.fixture(autouse=True, scope="session")
def no_second_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """Under ``--fast``, starting a process skips the test (or all tests of the fixture) that asked for it."""
    if not request.config.getoption("--fast"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", _refusing(subprocess.Popen))
        patch.setattr(multiprocessing.process.BaseProcess, "start", _refuse)
        yield


def _refusing(original: type[subprocess.Popen[Any]]) -> type[subprocess.Popen[Any]]:
    class Refusing(original):  # type: ignore[misc, valid-type]
        def __init__(self, args: Any, *others: Any, **options: Any) -> None:
            program = args.split()[0] if isinstance(args, str) else str(args[0])
            if Path(program).name not in ALLOWED:
                _refuse()
            super().__init__(args, *others, **options)

    return Refusing


def _refuse(*_: object) -> None:
    pytest.skip(REASON)
