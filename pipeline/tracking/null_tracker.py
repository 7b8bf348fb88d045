"""What ranks other than 0 have in the tracker's place: the same calls, without effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

END_TIMEOUT_SECONDS = 20.0  # how long the end of a run waits for its store


class NullTracker:
    """Does nothing: ranks other than 0."""

    run_id: str | None = None
    lost = 0

    def log(self, step: int, values: dict[str, float]) -> None:
        """Nothing."""

    def log_figure(self, name: str, figure: Any) -> None:
        """Nothing."""

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Nothing."""

    def set_tags(self, tags: dict[str, str]) -> None:
        """Nothing."""

    def flush(self, timeout_seconds: float = END_TIMEOUT_SECONDS) -> bool:
        """Nothing; True."""
        return True

    def end(self, status: str = "FINISHED") -> None:
        """Nothing."""
