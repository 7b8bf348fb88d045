"""Where tests find reference fixtures and real images, which are not part of the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("SHARED_DATA", Path(__file__).resolve().parents[2] / "shared"))


def shared(path: str, variable: str | None = None) -> Path:
    """``path`` below the shared data, or what the environment ``variable`` names; skips the test where it is absent."""
    found = Path(os.environ[variable]) if variable and variable in os.environ else SHARED / path
    if not found.exists():
        pytest.skip(f"{found} is not here" + (f"; set {variable} to a copy of it" if variable else ""))
    return found
