"""What the training loop may ask of tracking, and the tracker that does nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from matplotlib.figure import Figure
from PIL import Image

END_TIMEOUT_SECONDS = 20.0  # how long the end of a run waits for its store


class RefusedError(ValueError):
    """A tracking store will never take this value, however often it is sent."""


class Tracker(Protocol):
    """One run's tracking. No call raises for the store, and none waits for it but :meth:`flush` and :meth:`end`."""

    run_id: str | None  # of the MLflow run; None until the store has answered
    lost: int  # metric values, tags and files that never reached the store; known after end()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of an optimizer step."""

    def log_figure(self, name: str, figure: Figure | Image.Image) -> None:
        """Save a picture as RUN/figures/NAME.png and hand it to the store."""

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Hand a file to the store, under ``folder`` of the run's artifacts."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""

    def flush(self, timeout_seconds: float = END_TIMEOUT_SECONDS) -> bool:
        """Wait until everything logged so far is in the store; False when that takes longer."""

    def end(self, status: str = "FINISHED", timeout_seconds: float = END_TIMEOUT_SECONDS) -> None:
        """Write what waits and end the run as FINISHED, FAILED or KILLED."""


class NoTracking:
    """The tracker of every rank but 0: accepts all calls and does nothing."""

    run_id: str | None = None
    lost = 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def log_figure(self, name: str, figure: Figure | Image.Image) -> None:
        """Nothing."""

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Nothing."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Nothing."""

    def flush(self, timeout_seconds: float = END_TIMEOUT_SECONDS) -> bool:
        """Nothing to wait for: True."""
        return True

    def end(self, status: str = "FINISHED", timeout_seconds: float = END_TIMEOUT_SECONDS) -> None:
        """Nothing."""
