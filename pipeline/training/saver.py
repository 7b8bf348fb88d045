"""When checkpoints are written, which are kept, and where they are copied to; the loop's view of them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from torch import Tensor

from pipeline.base.border import BorderError, read_typed
from pipeline.base.files import write_json
from pipeline.base.ranks import RankInfo
from pipeline.base.run_folder import RunFolder
from pipeline.checkpoint.folder import checkpoint_folder, prune_checkpoints
from pipeline.checkpoint.record import CheckpointError
from pipeline.checkpoint.remote import RemoteCopies
from pipeline.config import TrainSettings
from pipeline.training.checkpoint import LIMIT_SECONDS, CheckpointWriter, Snapshot, take_snapshot
from pipeline.training.run import Run

BEST = "best.json"


class Saver:
    """Checkpoints of one run. Made on every rank; :meth:`save`, :meth:`finish` and :meth:`close` are collective."""

    def __init__(self, settings: TrainSettings, rank_info: RankInfo, fingerprint: dict[str, Any]) -> None:
        self.settings, self.rank_info, self.fingerprint = settings, rank_info, fingerprint
        self.wanted = False  # a save at the end of this step, as the best so far
        self._best = _read_best(settings)
        self._writer = CheckpointWriter(rank_info, self._on_written)
        copies = settings.remote_folder if rank_info.is_main else None
        self._copies = RemoteCopies(copies, settings.keep_last_checkpoints) if copies else None
        self._written: dict[str, float] = {}
        self._kept: dict[str, Tensor] = {}  # the memory of the newest copy

    def save(self, run: Run, must_succeed: bool) -> None:
        """Copy this rank's share and write it behind training; with ``must_succeed`` wait until it is whole.

        Raises:
            CheckpointError: on every rank, if this one had to succeed and did not.
        """
        step, self.wanted = run.state.step, False
        run.heartbeat.beat(step, "checkpoint", allowed_seconds=LIMIT_SECONDS)
        self._settle()
        self._writer.begin(self._snapshot(run), checkpoint_folder(self.settings.run_folder, step))
        if must_succeed:
            self._writer.wait()

    def save_failed_step(self, run: Run, folder: Path) -> None:
        """A checkpoint inside a failure's bundle, from before the update.

        Raises:
            CheckpointError: on every rank, if it could not be written.
        """
        run.heartbeat.beat(run.state.step, "checkpoint", allowed_seconds=LIMIT_SECONDS)
        self._settle()
        self._writer.begin(self._snapshot(run), folder)
        self._writer.wait()

    def offer_best(self, step: int, value: float) -> bool:
        """Whether ``value`` of ``train.keep_best`` is the highest so far; then this step's checkpoint is kept.

        Every rank must be told the same value.
        """
        if not math.isfinite(value) or value <= self._best.get("value", -math.inf):
            return False
        self._best = {"score": self.settings.keep_best, "value": value, "step": step}
        self.wanted = True
        return True

    @property
    def best_step(self) -> int | None:
        """The step of the best evaluation so far."""
        return self._best.get("step")

    def metrics(self) -> dict[str, float]:
        """Of the newest checkpoint: how long training waited for it, and how long it was written behind training."""
        return dict(self._written)

    def finish(self) -> None:
        """Wait until everything is written and copied.

        Raises:
            CheckpointError: on every rank, where the last checkpoint was not written.
        """
        self._writer.wait()
        if self._copies is not None:
            self._copies.finish()

    def close(self) -> None:
        """Give the process group back, after :meth:`finish`."""
        self._writer.close()

    def _settle(self) -> None:
        """Wait for the checkpoint before; training goes on without it if it failed, the one before that is whole."""
        try:
            self._writer.wait()
        except CheckpointError as error:
            if self.rank_info.is_main:
                print(f"warning: {error}", flush=True)

    def _snapshot(self, run: Run) -> Snapshot:
        run.state.tracker_run_id = run.tracker.run_id
        objective = run.losses.state.state_dict()
        snapshot = take_snapshot(run.engine, run.state, objective, self.rank_info, self.fingerprint, reuse=self._kept)
        self._kept = snapshot.tensors
        self._written["checkpoint/wait_seconds"] = snapshot.seconds
        return snapshot

    def _on_written(self, folder: Path, seconds: float) -> None:
        """In the writing thread of the main rank."""
        if folder.parent != RunFolder.at(self.settings.run_folder).checkpoints:
            return  # of a failed step
        self._written["checkpoint/write_seconds"] = seconds
        if self._best.get("step") == int(folder.name.removeprefix("step-")):
            write_json(Path(self.settings.run_folder) / BEST, self._best, durable=True)
        prune_checkpoints(
            self.settings.run_folder,
            self.settings.keep_last_checkpoints,
            self.settings.keep_every_steps,
            [self._best["step"]] if self._best else [],
        )
        if self._copies is not None:
            self._copies.add(folder)


@dataclass(frozen=True)
class _Best:
    """What BEST holds: the setting, its highest value, and the step of the checkpoint."""

    score: str
    value: Annotated[float, Field(strict=True, allow_inf_nan=False)]
    step: Annotated[int, Field(strict=True, ge=0)]


_BEST: TypeAdapter[_Best] = TypeAdapter(_Best)


def _read_best(settings: TrainSettings) -> dict[str, Any]:
    """What an earlier start noted, where it is of the same score; a damaged note is none."""
    try:
        best = read_typed(Path(settings.run_folder) / BEST, _BEST)
    except (OSError, BorderError):
        return {}
    return asdict(best) if best.score == settings.keep_best else {}
