"""What a program says when it ends by an error that nobody expected."""

from __future__ import annotations

import sys
from types import TracebackType

REQUEST = (
    "This is a defect of this project, not of your input or settings. Please report it with the lines above, the "
    "command, and the versions (python -m pip freeze)."
)


def ask_for_reports() -> None:
    """Let a traceback that ends this program be followed by a request to report it."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        before(kind, error, trace)
        if issubclass(kind, Exception):  # not Ctrl-C
            print(REQUEST, file=sys.stderr, flush=True)

    if before.__module__ != __name__:  # once a process
        sys.excepthook = hook
