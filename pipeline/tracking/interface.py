"""What the training loop may ask of tracking, and the tracker that does nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from matplotlib.figure import Figure
from PIL import Image

from pipeline.tracking.data_sets import DataSet

END_TIMEOUT_SECONDS = 20.0  # how long the end of a run waits for its store


class RefusedError(ValueError):
    """A tracking store will never take this value, however often it is sent."""


@dataclass(frozen=True)
class TrackedModel:
    """Weights that a run made: a checkpoint, or its export."""

    name: str  # "checkpoint-00000120", "export"
    folder: Path
    step: int
    width: int  # D of its embeddings
    parameters: Mapping[str, str] = field(default_factory=dict)


class Tracker(Protocol):
    """One run's tracking. No call raises for the store, and none waits for it but :meth:`flush` and :meth:`end`."""

    run_id: str | None  # of the MLflow run; None until the store has answered
    lost: int  # metric values, tags and files that never reached the store; known after end()
    page: str | None  # where the run is shown, and by which command; None until the store has answered

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of an optimizer step."""

    def log_figure(self, name: str, figure: Figure | Image.Image) -> None:
        """Save a picture as RUN/figures/NAME.png and hand it to the store."""

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Hand a file to the store, under ``folder`` of the run's artifacts."""

    def log_images(self, step: int, images: Mapping[str, Image.Image]) -> None:
        """Show images by step: each name is a row of MLflow's image grid. Names are ASCII."""

    def log_data(self, data: Sequence[DataSet]) -> None:
        """Note which data sets the run reads."""

    def log_checkpoints(self, checkpoints: Sequence[TrackedModel]) -> None:
        """The checkpoints that are kept now: new ones become models of the store, those that are gone leave it."""

    def log_export(self, model: TrackedModel) -> None:
        """The run's result becomes a model of the store, registered where the settings say so."""

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
    page: str | None = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def log_figure(self, name: str, figure: Figure | Image.Image) -> None:
        """Nothing."""

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Nothing."""

    def log_images(self, step: int, images: Mapping[str, Image.Image]) -> None:
        """Nothing."""

    def log_data(self, data: Sequence[DataSet]) -> None:
        """Nothing."""

    def log_checkpoints(self, checkpoints: Sequence[TrackedModel]) -> None:
        """Nothing."""

    def log_export(self, model: TrackedModel) -> None:
        """Nothing."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Nothing."""

    def flush(self, timeout_seconds: float = END_TIMEOUT_SECONDS) -> bool:
        """Nothing to wait for: True."""
        return True

    def end(self, status: str = "FINISHED", timeout_seconds: float = END_TIMEOUT_SECONDS) -> None:
        """Nothing."""
